-- One publish: numbered, kept, and on its way to whoever follows the room, or nothing of it.
-- KEYS: the room's stream; what is known of it. ARGV: in the order of the names below.
local parcel, count, length_max, ttl_ms = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]
local server, fresh, verb, channel = ARGV[5], ARGV[6], ARGV[7], ARGV[8]
local node, sequences, first_sequence, last_sequence = ARGV[9], ARGV[10], ARGV[11], ARGV[12]
-- What was sent just before, and had not been answered then: where it was refused, this one is, too.
local after = tonumber(ARGV[13])

local known = redis.call('HMGET', KEYS[2], 'h', 's', 'o', node)
local history, last, seen = known[1], tonumber(known[3]), known[4]
if not history or not last then
  redis.call('DEL', KEYS[1], KEYS[2])
  history, last, seen = '', 0, false
  if after > 0 then
    return redis.error_reply('TRYAGAIN what it follows was not taken')
  end
end
if seen then
  local of, number = string.match(seen, '^(%d+):(%d+)$')
  if of == sequences and tonumber(first_sequence) <= tonumber(number) then
    return last
  elseif of == sequences and tonumber(number) < after then
    return redis.error_reply('TRYAGAIN what it follows was not taken')
  end
elseif redis.call('HLEN', KEYS[2]) > 64 then
  for _, name in ipairs(redis.call('HKEYS', KEYS[2])) do
    if string.sub(name, 1, 1) == 'n' then redis.call('HDEL', KEYS[2], name) end
  end
end
local first = last + 1
if known[2] ~= server or history == '' then
  history = string.sub(history .. fresh .. string.format('%016x', first), -256)
end
last = last + count
redis.call('XADD', KEYS[1], 'MAXLEN', '~', length_max, string.format('%.0f-%.0f', first, count), 'm', parcel)
redis.call('HSET', KEYS[2], 'h', history, 's', server, 'o', string.format('%.0f', last),
  node, sequences .. ':' .. last_sequence)
redis.call('PEXPIRE', KEYS[1], ttl_ms)
redis.call('PEXPIRE', KEYS[2], ttl_ms)
redis.call(verb, channel, '\1\3' .. string.sub(history, -32, -17) .. string.format('%016x', first) .. parcel)
return last
