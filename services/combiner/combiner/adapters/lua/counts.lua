#!lua flags=no-writes
return {call('LLEN', P .. 'queue:job'), call('SCARD', P .. 'running:job')}
