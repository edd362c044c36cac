for name, value in pairs(a.values) do call('HSET', P .. 'settings', name, value) end
event('settings', {})
