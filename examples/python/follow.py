"""Puts a few items, watches them to the end, and lists the jobs.

    pip install -r requirements.txt
    python -m grpc_tools.protoc -I ../../proto --python_out=. --grpc_python_out=. ../../proto/weir/v1/*.proto
    python follow.py 127.0.0.1:7400
"""

import sys
import time
from collections.abc import Iterator

import grpc
from weir.v1 import job_pb2, job_service_pb2, job_service_pb2_grpc, source_pb2, source_pb2_grpc

NAME = "teas-python"
TEAS = {
    "assam": "Strong and malty; takes milk.",
    "sencha": "Green and grassy; 70 °C, one minute.",
    "puerh": "Aged and earthy; rinse it first.",
}


def put(channel: grpc.Channel) -> None:
    items = [source_pb2.Item(item_id=key, text=text) for key, text in TEAS.items()]
    request = source_pb2.PutSourceRequest(name=NAME, items=source_pb2.ItemList(items=items))
    answer = source_pb2_grpc.SourceServiceStub(channel).PutSource(request)
    print(f"{answer.change.chunks_pending} chunks to embed in {len(answer.jobs)} jobs")


def watch(jobs: job_service_pb2_grpc.JobServiceStub) -> Iterator[job_service_pb2.WatchSourceResponse]:
    """Every state until nothing is open, across broken connections."""
    cursor = ""
    while True:
        request = job_service_pb2.WatchSourceRequest(name=NAME, until_idle=True, cursor=cursor)
        try:
            for state in jobs.WatchSource(request):
                yield state
                cursor = state.cursor
            return
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.UNAVAILABLE:
                raise
            print("the connection broke; going on from the last state", flush=True)
            time.sleep(0.5)


def list_jobs(jobs: job_service_pb2_grpc.JobServiceStub) -> Iterator[job_pb2.Job]:
    """All jobs of the source, newest first."""
    request = job_service_pb2.ListJobsRequest(source=NAME)
    while True:
        page = jobs.ListJobs(request)
        yield from page.jobs
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token


def main(address: str) -> None:
    # A connection that the network lost without a word is noticed within half a minute.
    options = [("grpc.keepalive_time_ms", 20_000), ("grpc.keepalive_timeout_ms", 10_000)]
    with grpc.insecure_channel(address, options) as channel:
        put(channel)
        jobs = job_service_pb2_grpc.JobServiceStub(channel)
        for state in watch(jobs):
            print(f"{state.source.name}: {state.source.badge.text}", flush=True)
            for job in state.ended:
                print(f"job {job.job_id} ended: {job_pb2.JobState.Name(job.state)}", flush=True)
        for job in list_jobs(jobs):
            print(f"job {job.job_id}: {job.chunks_done} of {job.chunks_total} chunks")


if __name__ == "__main__":
    main(*sys.argv[1:])
