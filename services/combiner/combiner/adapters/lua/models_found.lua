for _, model in ipairs(a.models) do model_register(model) end
