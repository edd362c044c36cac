-- Putting back records of a backup, each with everything that is derived from it.
local function archive_index(kind, id, seq)
  call('ZADD', P .. 'all:' .. kind, seq, id)
  if seq > tonumber(call('GET', P .. 'seq') or '0') then call('SET', P .. 'seq', seq) end
end

-- What ended is indexed by when; what was queued is queued again, and what ran is anybody's to go on with.
local function archive_work(kind, id, fields)
  if ENDED[fields.state] then
    call('ZADD', P .. 'ended:' .. kind, fields.ended_ms or 0, id)
  elseif fields.state == 'QUEUED' then
    call('RPUSH', P .. 'queue:' .. kind, id)
  else
    call('SADD', P .. 'running:' .. kind, id)
    lease_new(kind .. ':' .. id, '')
  end
end

local function archive_hash(key, fields)
  local flat = {}
  for name, value in pairs(fields) do flat[#flat + 1], flat[#flat + 2] = name, value end
  all_of('HSET', key, flat)
end

-- Open tasks are queued again, and updates count for nobody else.
local function archive_client(id, fields, client, text)
  local rec = cjson.decode(text)
  if rec[STATE] == 'asked' and fields.state == 'RUNNING' and not fields.closed then
    task_write(client, rec[TASK], {a.seq, fields.kind, id, 0, '', ''})
  end
  if rec[UPDATE] ~= '' and not (rec[STATE] == 'rejected' and rec[REASON] == 'duplicate') then
    call('SET', P .. 'update:' .. rec[UPDATE], id .. '\n' .. client, 'PX', update_ms(fields.deadline_ms), 'NX')
  end
end
