#!lua flags=allow-oom
local lease = lease_read(a.work)
if not lease or lease.token ~= a.token or lease.beat ~= a.beat then return false end
return lease_new(a.work, a.replica)
