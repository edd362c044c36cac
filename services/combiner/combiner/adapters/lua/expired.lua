#!lua flags=no-writes
local jobs, sessions = unpack(by_kind(ended_expired(a.most, math.huge)))
return {jobs, sessions, roster_expired(a.most)}
