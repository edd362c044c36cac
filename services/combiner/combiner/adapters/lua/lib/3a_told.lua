-- Reports of clients, told beside their answers: told:<client>, a hash of <kind>:<name> -> text; bounded for each client and in all.
local TOLD_OVERHEAD = 48  -- bytes of a value, beside its name and text

local function told_key(client) return P .. 'told:' .. client end

-- The sum never goes below zero: an earlier version kept reports without counting them.
local function told_count(bytes)
  if call('INCRBY', P .. 'told:bytes', bytes) < 0 then call('SET', P .. 'told:bytes', 0) end
end

local function told_forget(client)
  local bytes, flat = 0, call('HGETALL', told_key(client))
  if #flat == 0 then return end
  for i = 1, #flat, 2 do bytes = bytes + #flat[i] + #flat[i + 1] + TOLD_OVERHEAD end
  told_count(-bytes)
  call('DEL', told_key(client))
end

local function told_number(client, kind)
  local number = 0
  for _, field in ipairs(call('HKEYS', told_key(client))) do
    if string.sub(field, 1, #kind + 1) == kind .. ':' then number = number + 1 end
  end
  return number
end

-- The last value of each name; a new name only while there is room for it.
local function told_keep(client, kind, values)
  local key, number = told_key(client), told_number(client, kind)
  local room = share(limits.told_share) - tonumber(call('GET', P .. 'told:bytes') or '0')
  local added = 0
  for name, text in pairs(values) do
    local field = kind .. ':' .. name
    local known = call('HGET', key, field)
    local more = known and #text - #known or #field + #text + TOLD_OVERHEAD
    if (known or number < limits.max_told) and added + more <= room then
      call('HSET', key, field, text)
      added = added + more
      if not known then number = number + 1 end
    end
  end
  if added ~= 0 then told_count(added) end
end
