#!lua flags=no-writes
local rows = {}
for i, client in ipairs(a.clients) do
  local at = call('ZSCORE', P .. 'seen', client)
  rows[i] = {
    at and math.abs(NOW - tonumber(at)) or -1,
    call('HGET', P .. 'subs:training', client) or '0', call('HGET', P .. 'subs:validation', client) or '0',
    call('HGET', P .. 'subs:all', client) or '0', call('HGET', P .. 'eras', client) or '',
    call('SISMEMBER', P .. 'cut', client), call('HGET', P .. 'names', client) or '',
  }
end
return rows
