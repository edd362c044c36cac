call('SET', P .. 'models:complete', 1)
