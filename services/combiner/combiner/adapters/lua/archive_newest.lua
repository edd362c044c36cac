#!lua flags=no-writes
return {call('GET', P .. 'newest:committed') or '', call('GET', P .. 'newest:put') or ''}
