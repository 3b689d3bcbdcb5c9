// Puts a few items, watches them to the end, and lists the jobs. The contract is
// read as it is; no code is generated.
//
//     npm install
//     node follow.js 127.0.0.1:7400

import { fileURLToPath } from "node:url";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import grpc from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";

const NAME = "teas-node";
const TEAS = {
  assam: "Strong and malty; takes milk.",
  sencha: "Green and grassy; 70 °C, one minute.",
  puerh: "Aged and earthy; rinse it first.",
};

const contract = loadSync(["weir/v1/source.proto", "weir/v1/job_service.proto"], {
  includeDirs: [fileURLToPath(new URL("../../proto", import.meta.url))],
  defaults: true,
  enums: String,
  longs: String,
});
const { SourceService, JobService } = grpc.loadPackageDefinition(contract).weir.v1;

/** Calls a method that has one answer. */
const call = (client, method, request) => promisify(client[method]).call(client, request);

/** Every state until nothing is open, across broken connections. */
async function* watch(jobs) {
  let cursor = "";
  for (;;) {
    try {
      for await (const state of jobs.watchSource({ name: NAME, untilIdle: true, cursor })) {
        yield state;
        cursor = state.cursor;
      }
      return;
    } catch (error) {
      if (error.code !== grpc.status.UNAVAILABLE) throw error;
      console.log("the connection broke; going on from the last state");
      await sleep(500);
    }
  }
}

/** All jobs of the source, newest first. */
async function* listJobs(jobs) {
  let pageToken = "";
  do {
    const page = await call(jobs, "listJobs", { source: NAME, pageToken });
    yield* page.jobs;
    pageToken = page.nextPageToken;
  } while (pageToken);
}

const [address] = process.argv.slice(2);
// A connection that the network lost without a word is noticed within half a minute.
const options = { "grpc.keepalive_time_ms": 20_000, "grpc.keepalive_timeout_ms": 10_000 };
const clients = [SourceService, JobService].map(
  (Service) => new Service(address, grpc.credentials.createInsecure(), options),
);
const [sources, jobs] = clients;

const items = Object.entries(TEAS).map(([itemId, text]) => ({ itemId, text }));
const put = await call(sources, "putSource", { name: NAME, items: { items } });
console.log(`${put.change.chunksPending} chunks to embed in ${put.jobs.length} jobs`);
for await (const state of watch(jobs)) {
  console.log(`${state.source.name}: ${state.source.badge.text}`);
  for (const job of state.ended) console.log(`job ${job.jobId} ended: ${job.state}`);
}
for await (const job of listJobs(jobs)) {
  console.log(`job ${job.jobId}: ${job.chunksDone} of ${job.chunksTotal} chunks`);
}
for (const client of clients) client.close();
