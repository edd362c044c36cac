for name, id in pairs({['newest:committed'] = a.committed, ['newest:put'] = a.put}) do
  if id ~= '' and call('EXISTS', P .. 'model:' .. id) == 1 then call('SET', P .. name, id) end
end
-- Whoever watches looks again, and whoever works takes what was put back.
event('resync', {})
event('released', {})
