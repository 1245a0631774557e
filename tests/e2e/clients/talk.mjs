// A member of a room by the npm package `ws`. Standard input says what to do, a JSON object a line:
// {"say": TEXT} {"bytes": BASE64} {"ping": TEXT} {"close": CODE}
// Standard output says what happened, in the same way: open, text, bytes, pong, closed, failed.
import { createInterface } from 'node:readline';
import WebSocket from 'ws';

const report = (event) => process.stdout.write(JSON.stringify(event) + '\n');
const socket = new WebSocket(process.argv[2]);

socket.on('open', () => report({ event: 'open', extensions: socket.extensions }));
socket.on('message', (data, isBinary) =>
  report(isBinary ? { event: 'bytes', data: data.toString('base64') } : { event: 'text', data: data.toString() }));
socket.on('pong', (data) => report({ event: 'pong', data: data.toString() }));
socket.on('unexpected-response', (request, response) => {
  report({ event: 'failed', status: response.statusCode, retryAfter: response.headers['retry-after'] });
  process.exit(0);
});
socket.on('error', (error) => report({ event: 'error', message: error.message }));
socket.on('close', (code, reason) => {
  report({ event: 'closed', code, reason: reason.toString() });
  process.exit(0);
});

createInterface({ input: process.stdin }).on('line', (line) => {
  const order = JSON.parse(line);
  if ('say' in order) socket.send(order.say);
  if ('bytes' in order) socket.send(Buffer.from(order.bytes, 'base64'));
  if ('ping' in order) socket.ping(order.ping);
  if ('close' in order) socket.close(order.close);
});
