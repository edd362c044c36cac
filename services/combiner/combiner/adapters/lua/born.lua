#!lua flags=allow-oom
-- A state that was begun before this was noted counts from now on.
call('SETNX', P .. 'born', NOW)
return call('GET', P .. 'born')
