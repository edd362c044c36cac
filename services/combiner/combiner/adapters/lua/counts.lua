return {call('LLEN', P .. 'queue:job'), call('SCARD', P .. 'running:job')}
