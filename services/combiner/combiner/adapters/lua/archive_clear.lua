#!lua flags=allow-oom
-- A portion of what is there goes. Returns how much; 0 when nothing is left.
local gone = 0
for _, id in ipairs(call('ZRANGE', P .. 'ended:job', 0, a.most - 1)) do
  job_forget(id)
  gone = gone + 1
end
for _, id in ipairs(call('ZRANGE', P .. 'ended:session', 0, a.most - 1)) do
  session_forget(id)
  gone = gone + 1
end
for _, id in ipairs(call('ZRANGE', P .. 'all:model', 0, a.most - 1)) do
  model_forget(id)
  gone = gone + 1
end
return gone
