#!lua flags=no-writes
local owners, jobs, told = {}, {}, {}
for i, id in ipairs(a.ids) do
  local job_id = string.match(call('GET', P .. 'update:' .. id) or '', '^(.*)\n')
  local state, config = unpack(call('HMGET', job_key(job_id or ''), 'state', 'config'))
  owners[i] = state and job_id or ''
  if state and not told[job_id] then
    told[job_id] = true
    jobs[#jobs + 1] = {job_id, state, config}
  end
end
return {owners, jobs}
