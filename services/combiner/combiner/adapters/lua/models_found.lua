for _, model in ipairs(a.models) do
  if not model_refused(model.model_id) then model_register(model) end
end
