// Follows the allocations of all clusters: those of the last hour, then those that come, each once.
//
//   node follow.mjs nats://nats:4222 ../../schemas/asyncapi.yaml
//
// All it knows of Dragoman is in the AsyncAPI document: where the event is published, and which headers it has.
import { readFileSync } from "node:fs";
import { connect, DeliverPolicy, JSONCodec } from "nats";
import { parse } from "yaml";

const [server, document] = process.argv.slice(2);
const channel = parse(readFileSync(document, "utf8")).channels["claim.allocated"];
// dra.v1.events.{cluster}.claim.allocated.{key}: any cluster, and a key of one or more tokens.
const subject = channel.address.replace(/\{cluster\}/, "*").replace(/\{key\}$/, ">");

const connection = await connect({ servers: server });
const stream = await (await connection.jetstreamManager()).streams.find(subject);
const consumer = await connection.jetstream().consumers.get(stream, {
  filterSubjects: [subject],
  deliver_policy: DeliverPolicy.StartTime,
  opt_start_time: new Date(Date.now() - 3600 * 1000).toISOString(),
});
const codec = JSONCodec();
for await (const message of await consumer.consume()) {
  const event = codec.decode(message.data);
  const { namespace, name, cluster } = event.claim;
  const devices = event.devices.map((each) => `${each.pool}/${each.device}`);
  console.log(JSON.stringify({ id: message.headers.get("ce-id"), claim: `${cluster}/${namespace}/${name}`, devices }));
}
