-- Retention of ended jobs and sessions: the oldest go first; the newest one of each kind stays.
local PURGED_RECORDS = 20000  -- at most in one step: Redis does nothing else for about 100 ms meanwhile

local function ended_queue(kind, most)
  return {
    kind = kind, next = 1, number = call('ZCARD', P .. 'ended:' .. kind), keep = limits['keep_' .. kind .. 's'],
    oldest = call('ZRANGE', P .. 'ended:' .. kind, 0, most - 1, 'WITHSCORES'),
  }
end

local function ended_at(queue) return tonumber(queue.oldest[queue.next + 1]) end

local function weight_of(kind, id)
  if kind == 'job' then return tonumber(call('HGET', job_key(id), 'weight') or '1') end
  local results = redis.pcall('MEMORY', 'USAGE', results_key(id), 'SAMPLES', 5)
  local bytes = call('HSTRLEN', session_key(id), 'doc') + (type(results) == 'number' and results or 0)
  return 1 + math.ceil(bytes / RECORD)
end

-- At most `most` of each kind and `records` in all, but one at least: {kind, id, early}; `early`: for want of memory.
local function ended_expired(most, records)
  local queues, found = {ended_queue('job', most), ended_queue('session', most)}, {}
  local over, taken = excess(limits.purge_at), 0
  -- Where there is no limit of memory, the records that ended jobs weigh are bounded.
  local surplus = memory() and 0 or tonumber(call('GET', P .. 'records') or '0') - limits.keep_records

  local function why(queue)
    local at = ended_at(queue)
    if at and queue.number > queue.keep and at < NOW - limits.keep_ms then return 'old' end
    local heavy = over > 0 or (queue.kind == 'job' and surplus > 0)
    return at and queue.number > 1 and heavy and 'heavy'
  end

  while true do
    local oldest
    for _, queue in ipairs(queues) do
      if why(queue) and (not oldest or ended_at(queue) < ended_at(oldest)) then oldest = queue end
    end
    if not oldest then return found end
    local id = oldest.oldest[oldest.next]
    local weight = weight_of(oldest.kind, id)
    if taken > 0 and taken + weight > records then return found end
    found[#found + 1] = {oldest.kind, id, why(oldest) == 'heavy'}
    taken, over = taken + weight, over - weight * RECORD
    if oldest.kind == 'job' then surplus = surplus - weight end
    oldest.next, oldest.number = oldest.next + 2, oldest.number - 1
  end
end

-- {ids of jobs, ids of sessions}
local function by_kind(expired)
  local ids = {job = {}, session = {}}
  for _, item in ipairs(expired) do ids[item[1]][#ids[item[1]] + 1] = item[2] end
  return {ids.job, ids.session}
end

purge_ended = function(most, records)
  local expired, early = ended_expired(most, records), 0
  for _, item in ipairs(expired) do
    if item[1] == 'job' then job_forget(item[2]) else session_forget(item[2]) end
    if item[3] then early = early + 1 end
  end
  if early > 0 then call('HINCRBY', P .. 'retention', 'early', early) end
  return by_kind(expired)
end
