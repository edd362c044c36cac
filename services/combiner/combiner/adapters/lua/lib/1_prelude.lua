-- Prepended, with the rest of lib/, to every script. KEYS[1] is the prefix of all keys, ARGV[1] the limits, ARGV[2] the
-- named arguments, both JSON, ARGV[3] a text that may be large. Typed errors are replies that begin with FC (see connection.py).
local P = KEYS[1]
local limits = cjson.decode(ARGV[1])
local a = cjson.decode(ARGV[2])
local TEXT = ARGV[3]
local call = redis.call

local clock = call('TIME')
local NOW = clock[1] * 1000 + math.floor(clock[2] / 1000)

local found_schema = tonumber(call('GET', P .. 'schema'))
if not found_schema then
  -- Not in a script that only reads; there is nothing to mark then.
  redis.pcall('SET', P .. 'schema', limits.schema)
  redis.pcall('SET', P .. 'born', NOW)
elseif found_schema < limits.schema then
  -- The first newer version that writes stops the older ones.
  redis.pcall('SET', P .. 'schema', limits.schema)
elseif found_schema > limits.schema then
  return redis.error_reply('FCSCHEMA ' .. found_schema)
end

-- A step that is repeated because too few replicas had it may change nothing any more: WAIT is about this write then.
if a.waits then call('SET', P .. 'waited', NOW) end

local ENDED = {SUCCEEDED = true, FAILED = true, CANCELLED = true}
local NAMES_IN_EVENT = 200  -- so that no entry of the log is long; more names are more entries
local MEASURED_EVERY = 64  -- entries of the log
local ARGUMENTS = 4000  -- Lua's stack holds less than 8,000

local function all_of(command, key, args)
  for i = 1, #args, ARGUMENTS do
    call(command, key, unpack(args, i, math.min(i + ARGUMENTS - 1, #args)))
  end
end

-- The memory that counts against maxmemory, and maxmemory; nil if there is no limit, or INFO is not allowed. Read once in
-- each run of a script: INFO takes longer than most steps, and a step of 300 clients asks several times for each.
local measured, used_memory, maxmemory = false, nil, nil
local function memory()
  if measured then return used_memory, maxmemory end
  measured = true
  local info = redis.pcall('INFO', 'memory')
  if type(info) ~= 'string' then return nil end
  local function figure(name)
    return tonumber(string.match(info, '\n' .. name .. ':(%d+)') or '0')
  end
  local most = figure('maxmemory')
  if most == 0 then return nil end
  used_memory, maxmemory = figure('used_memory') - figure('mem_not_counted_for_evict'), most
  return used_memory, maxmemory
end

-- Bytes: a part of maxmemory.
local function share(part)
  local _, most = memory()
  return math.floor((most or limits.assumed_memory) * part)
end

-- Bytes used above a part of maxmemory; not positive if there is room.
local function excess(part)
  local used, most = memory()
  return used and used - most * part or 0
end

-- The rest of the memory is for what runs: nil, or the error of a step that would begin something new.
local function no_room()
  local used, most = memory()
  if used and used > most * limits.refuse_at then
    local mib = 1024 * 1024
    return redis.error_reply(string.format('FCMEMORY %.1f of %.1f', used / mib, most / mib))
  end
end

-- Keeps a stream below its part of the memory. Measuring a full one takes about a millisecond.
local function trim(name, part)
  local key, room = P .. name, share(part)
  local bytes = redis.pcall('MEMORY', 'USAGE', key, 'SAMPLES', 0)
  if type(bytes) == 'number' and bytes > room then
    call('XTRIM', key, 'MAXLEN', '~', math.floor(call('XLEN', key) * room / bytes))
  end
end

-- `n` counts the entries, so that a reader sees from two of them whether any is missing in between.
local function event(what, fields)
  local n = call('INCR', P .. 'log:n')
  call('XADD', P .. 'log', 'MAXLEN', '~', limits.log_length, '*', 'n', n, 'what', what, unpack(fields))
  if n % MEASURED_EVERY == 0 then trim('log', limits.log_share) end
end

-- `client` and `tasks`: about clients, not about a change of one job.
local function names_event(what, job_id, names)
  for i = 1, #names, NAMES_IN_EVENT do
    local some = {unpack(names, i, math.min(i + NAMES_IN_EVENT - 1, #names))}
    event(what, {'job_id', job_id, 'client', #names == 1 and names[1] or '', 'clients', cjson.encode(some)})
  end
end

local function lease_read(work)
  local text = call('HGET', P .. 'leases', work)
  if not text then return nil end
  local token, beat, owner = string.match(text, '^(%d+) (%d+) (.*)$')
  return {token = tonumber(token), beat = tonumber(beat), owner = owner}
end

local function lease_write(work, lease)
  call('HSET', P .. 'leases', work, string.format('%d %d %s', lease.token, lease.beat, lease.owner))
end

-- All of them: {work, owner, token, beat}.
local function lease_views()
  local views, flat = {}, call('HGETALL', P .. 'leases')
  for i = 1, #flat, 2 do
    local lease = lease_read(flat[i])
    views[i / 2 + 0.5] = {flat[i], lease.owner, lease.token, lease.beat}
  end
  return views
end

-- Tokens only grow, and are never below the time: also a Redis that lost its last second hands out none twice.
local function lease_new(work, owner)
  local token = math.max(tonumber(call('GET', P .. 'fence') or '0') + 1, NOW)
  call('SET', P .. 'fence', string.format('%d', token))
  lease_write(work, {token = token, beat = 0, owner = owner})
  return token
end

-- A replica lives from its first step on, so that the others notice when it is gone.
local function replica_begin(replica)
  lease_new('replica:' .. replica, replica)
  return lease_read('replica:' .. replica)
end

local function split_work(work)
  return string.match(work, '^(%a+):(.*)$')
end

-- Every leased script begins with this: nil, or the error to return.
local function guard()
  local kind, id = split_work(a.work)
  local state = call('HGET', P .. kind .. ':' .. id, 'state')
  if not state or ENDED[state] then
    return redis.error_reply('FCENDED ' .. a.work)
  end
  local lease = lease_read(a.work)
  if not lease or lease.token ~= a.token or lease.owner == '' then
    return redis.error_reply('FCLOST ' .. a.work)
  end
end

-- The head of a queue starts to run, if fewer than `most` do. Returns its id and the token.
local function claim_next(kind, replica, most)
  if call('SCARD', P .. 'running:' .. kind) >= most then return nil end
  local id = call('LPOP', P .. 'queue:' .. kind)
  if not id then return nil end
  call('SADD', P .. 'running:' .. kind, id)
  call('HSET', P .. kind .. ':' .. id, 'state', 'RUNNING', 'started_ms', NOW)
  return id, lease_new(kind .. ':' .. id, replica)
end

local function is_full(kind)
  return call('LLEN', P .. 'queue:' .. kind) >= limits.max_queued
end

local function enqueue(kind, id)
  call('ZADD', P .. 'all:' .. kind, call('INCR', P .. 'seq'), id)
  call('RPUSH', P .. 'queue:' .. kind, id)
end

-- Ids of what runs, then of what is queued.
local function unended(kind)
  local ids = call('SMEMBERS', P .. 'running:' .. kind)
  for _, id in ipairs(call('LRANGE', P .. 'queue:' .. kind, 0, -1)) do ids[#ids + 1] = id end
  return ids
end

local purge_ended  -- see 8_retention.lua

-- Work that ended is no longer in a queue, runs no more, and nobody holds it.
local function retire(kind, id)
  call('LREM', P .. 'queue:' .. kind, 1, id)
  call('SREM', P .. 'running:' .. kind, id)
  call('HDEL', P .. 'leases', kind .. ':' .. id)
  call('ZADD', P .. 'ended:' .. kind, NOW, id)
end
