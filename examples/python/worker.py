"""A worker: embeds what comes on its session, with Ollama, until SIGTERM.

    pip install -r requirements.txt
    python -m grpc_tools.protoc -I ../../proto --python_out=. --grpc_python_out=. ../../proto/weir/v1/*.proto
    python worker.py 127.0.0.1:7400 nomic-embed-text http://127.0.0.1:11434
"""

import json
import math
import os
import random
import signal
import socket
import struct
import sys
import threading
import time
import urllib.error
import urllib.request
from queue import SimpleQueue

import grpc
from weir.v1 import worker_pb2 as v1
from weir.v1 import worker_pb2_grpc

BATCH = 32  # chunks in a call
ROOM = 2 * BATCH  # chunks here at a time: those that are embedded, and the next
RETRY = 2  # seconds between looks at an embedder that is down


class Busy(Exception):
    """The embedder has too much to do, which says nothing about the texts."""


def embed(texts: list[str]) -> list[list[float]]:
    """A vector for each text, in order. Put your own embedder in place of this one."""
    _, _, model, url = sys.argv
    # A text that is too long is refused, rather than cut without a word.
    body = json.dumps({"model": model, "input": texts, "truncate": False}).encode()
    request = urllib.request.Request(f"{url}/api/embed", body, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["embeddings"]
    except urllib.error.HTTPError as error:
        words = f"{error.code}: {error.read().decode(errors='replace')}"
        raise (Busy if error.code in (429, 503) else ValueError)(words) from None


def packed(texts: list[str]) -> list[bytes]:
    """The vectors as they are sent, one for each text and of finite numbers, or an exception."""
    vectors = embed(texts)
    if len(vectors) != len(texts) or not all(math.isfinite(x) for vector in vectors for x in vector):
        raise ValueError("the embedder did not send finite numbers for each text")
    return [struct.pack(f"<{len(vector)}f", *vector) for vector in vectors]


def outcomes(texts: list[str]) -> list[bytes | str]:
    """The vector of each text, or why it is rejected. An exception: the embedder is down."""
    try:
        return packed(texts)
    except Busy:
        raise
    except Exception:
        packed(["probe"])
        return [alone(text) for text in texts]


def alone(text: str) -> bytes | str:
    try:
        return packed([text])[0]
    except Busy:
        raise
    except Exception as error:
        # The text is to blame only where the embedder embeds another after it.
        packed(["probe"])
        return str(error) or repr(error)


class Held:
    """A part that came, until its result is acknowledged or its lease has ended."""

    def __init__(self, part: v1.BatchPart) -> None:
        self.part, self.result = part, None


class Worker:
    def __init__(self, stub: worker_pb2_grpc.WorkerServiceStub, model: str) -> None:
        self.stub, self.model = stub, model
        self.lock = threading.Lock()  # over all of this, and over the order of what is said of it
        self.held: dict[int, Held] = {}
        self.condition = v1.EmbedderCondition(model=model)  # not tried yet
        self.draining = False
        self.todo: SimpleQueue[list[Held]] = SimpleQueue()
        self.outbox: SimpleQueue = SimpleQueue()  # of one stream
        self.interval = 1.0  # seconds between heartbeats, until the coordinator says how many

    def run(self) -> None:
        """Has a session open until the worker has drained."""
        for task in (self.work, self.beat, self.drain):
            threading.Thread(target=task, daemon=True).start()
        while not (self.draining and not self.held):
            try:
                for said in self.open():
                    self.hear(said)
            except grpc.RpcError as error:
                # What this worker says is wrong, and would be again. All else passes.
                if error.code() == grpc.StatusCode.INVALID_ARGUMENT:
                    raise
                print(f"the session broke: {error.details()}", flush=True)
                # Its leases are kept for two seconds, or longer.
                time.sleep(random.uniform(0.1, 0.5))

    def open(self) -> grpc.Call:
        """Opens a stream, and says all that the one before it may not have carried."""
        with self.lock:
            opening = v1.SessionOpen(worker_id=f"{socket.gethostname()}-{os.getpid()}", version="example")
            opening.models.add(name=self.model, batch_size=BATCH)
            leases: dict[tuple[int, int], v1.HeldLease] = {}
            for part in (held.part for held in self.held.values()):
                of = (part.job_id, part.epoch)
                lease = leases.setdefault(of, v1.HeldLease(job_id=part.job_id, epoch=part.epoch))
                lease.parts.add(seq=part.seq, chunks=[v1.ChunkKey(**key(chunk)) for chunk in part.chunks])
            opening.held.extend(leases.values())
            self.outbox.put(None)  # the end of what is read for the last stream
            self.outbox = SimpleQueue()
            self.say(open=opening)
            self.say(condition=self.condition)
            # A session begins without credit.
            self.grant(ROOM - sum(len(held.part.chunks) for held in self.held.values()))
            for held in self.held.values():
                if held.result is not None:
                    self.say(result=v1.BatchResult(parts=[held.result]))
            if self.draining:
                self.say(drain=v1.Drain())
            return self.stub.StreamBatches(iter(self.outbox.get, None))

    def say(self, **message: object) -> None:
        self.outbox.put(v1.StreamBatchesRequest(**message))

    def grant(self, chunks: int) -> None:
        if chunks > 0 and not self.draining:
            self.say(credit=v1.Credit(model=self.model, chunks=chunks))

    def beat(self) -> None:
        """Renews all leases, whatever else is said: a result renews that of its own job only."""
        while True:
            time.sleep(self.interval)
            with self.lock:
                self.say(heartbeat=v1.Heartbeat())

    def drain(self) -> None:
        signal.sigwait({signal.SIGTERM})
        with self.lock:
            self.draining = True
            self.say(drain=v1.Drain())
        print("draining", flush=True)

    def hear(self, said: v1.StreamBatchesResponse) -> None:
        match said.WhichOneof("message"):
            case "opened":
                self.interval = said.opened.heartbeat_interval.ToTimedelta().total_seconds()
                print(f"the session is open, with {len(self.held)} parts held", flush=True)
            case "batch":
                batch = [Held(part) for part in said.batch.parts]
                with self.lock:
                    self.held.update((held.part.seq, held) for held in batch)
                self.todo.put(batch)
            case "ack":
                self.let_go({part.seq for part in said.ack.parts})
            case "ended":
                job, epoch, how = said.ended.job_id, said.ended.epoch, said.ended.WhichOneof("how")
                print(f"job {job}: {how} {said.ended.refused}".rstrip(), flush=True)
                parts = [held.part for held in self.held.values()]
                self.let_go({part.seq for part in parts if (part.job_id, part.epoch) == (job, epoch)})

    def let_go(self, seqs: set[int]) -> None:
        with self.lock:
            gone = [self.held.pop(seq) for seq in seqs if seq in self.held]
            self.grant(sum(len(held.part.chunks) for held in gone))

    def work(self) -> None:
        """Embeds what comes, for as long as the embedder embeds anything."""
        while True:
            try:
                packed(["probe"])
                self.tell(v1.EMBEDDER_STATE_FIT)
                while True:
                    batch = self.wanted(self.todo.get())
                    texts = [chunk.text for held in batch for chunk in held.part.chunks]
                    # Who drains ends what is begun, and hands back the rest.
                    self.answer(batch, outcomes(texts) if texts and not self.draining else [])
            except Exception as error:
                # Said first, or what goes back would come again.
                self.tell(v1.EMBEDDER_STATE_DOWN, str(error) or repr(error))
                self.answer(self.wanted(), [])
                time.sleep(RETRY)

    def tell(self, state: int, reason: str = "") -> None:
        with self.lock:
            self.condition = v1.EmbedderCondition(model=self.model, state=state, reason=reason)
            self.say(condition=self.condition)
        print(v1.EmbedderState.Name(state), reason, flush=True)

    def wanted(self, batch: list[Held] | None = None) -> list[Held]:
        """Those that are not answered, and whose leases have not ended."""
        with self.lock:
            batch = list(self.held.values()) if batch is None else batch
            return [it for it in batch if it.result is None and self.held.get(it.part.seq) is it]

    def answer(self, batch: list[Held], outcomes: list[bytes | str]) -> None:
        """Says what became of each chunk. Those without an outcome go back."""
        rest = iter(outcomes)
        for held in batch:
            result = v1.PartResult(seq=held.part.seq)
            for chunk, outcome in zip(held.part.chunks, rest):
                if isinstance(outcome, bytes):
                    result.embedded.add(vector=outcome, **key(chunk))
                else:
                    result.rejected.add(reason=outcome, **key(chunk))
            with self.lock:
                if self.held.get(held.part.seq) is held:
                    # Kept until it is acknowledged: a stream that breaks may lose it.
                    held.result = result
                    self.say(result=v1.BatchResult(parts=[result]))


def key(chunk: v1.Chunk) -> dict[str, object]:
    return {"item_id": chunk.item_id, "chunk_index": chunk.chunk_index, "text_hash": chunk.text_hash}


def main(address: str, model: str) -> None:
    # Threads begin with this: the one that waits for the signal gets it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    options = [
        # A connection that the network lost without a word is noticed within half a minute.
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        # Leases wait for the next one: it is tried often.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        # A batch of long texts is more than gRPC takes unless told.
        ("grpc.max_receive_message_length", 32 << 20),
    ]
    with grpc.insecure_channel(address, options) as channel:
        Worker(worker_pb2_grpc.WorkerServiceStub(channel), model).run()


if __name__ == "__main__":
    main(*sys.argv[1:3])
