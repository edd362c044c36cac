#!lua flags=allow-oom
local lease = lease_read(a.work)
if not lease or lease.token ~= a.token or lease.beat ~= a.beat then return false end
local kind, id = split_work(a.work)
local died = lease.owner ~= '' and lease.owner ~= a.replica
if kind == 'job' and died then job_owner_died(id) end
return lease_new(a.work, a.replica)
