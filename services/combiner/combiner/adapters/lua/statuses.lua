for _, fields in ipairs(a.entries) do
  call('XADD', P .. 'said', 'MAXLEN', '~', limits.max_statuses, '*', unpack(fields))
end
trim('said', limits.said_share)
