#!lua flags=allow-oom
local lost = guard()
if lost then return lost end
local _, id = split_work(a.work)
job_close(id, a.why)
return job_dump(id)
