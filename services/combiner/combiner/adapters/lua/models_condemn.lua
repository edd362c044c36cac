local found = {}
for _, id in ipairs(a.ids) do
  if call('EXISTS', P .. 'model:' .. id) == 0 then
    model_condemn(id)
    found[#found + 1] = id
  end
end
return found
