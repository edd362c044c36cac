#!lua flags=allow-oom
local jobs, sessions = unpack(purge_ended(a.most, PURGED_RECORDS))
return {jobs, sessions, roster_purge(a.most)}
