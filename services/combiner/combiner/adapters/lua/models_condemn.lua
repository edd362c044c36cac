#!lua flags=allow-oom
-- A Redis that was lost and has not been told yet what the store holds knows no orphan.
if call('EXISTS', P .. 'models:complete') == 0 then return {} end
local found = {}
for _, id in ipairs(a.ids) do
  if call('EXISTS', P .. 'model:' .. id) == 0 then
    model_condemn(id)
    found[#found + 1] = id
  end
end
return found
