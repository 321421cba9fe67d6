# mypy: allow-untyped-defs, allow-untyped-calls
# (numba infers the types of compiled functions; shapes are in the comments and docstrings)
"""A batch's work in shares, one a thread, without the interpreter.

A thread stays in compiled code, asleep on a semaphore between steps. It so takes a few microseconds
to be given a share. Through the interpreter, whose code and data a model's step has driven out of
the caches, it takes as long as the share itself.
"""

import numpy as np
from numba import types

from reprise.spec.batching.drafting import draft_batch, learn_batch, observe_batch
from reprise.spec.runtime.compiled import compiled, int32_at, int64_at, int64_table
from reprise.spec.runtime.layout import CORPUS_FIELDS, REQUEST_FIELDS

OBSERVE, LEARN, DRAFT, STOP = range(4)

# A job: what is to be done, in how many shares, and where it lies.
(
    KIND,
    SHARES,
    LEARN_SHARES,
    REQ_INDICES,
    BATCH_SIZE,
    EMITTED,
    NUM_EMITTED,
    ENDS,
    LIMITS,
    REQUESTS,
    NUM_REQUESTS,
    CORPORA,
    NUM_CORPORA,
    TRACE,
    TRACE_FIELDS,
    WEIGHTS,
    WEIGHTS_FIELDS,
    JOB_FIELDS,
) = range(18)

SEMAPHORE_INTS = 8
"""A `sem_t` of 32 bytes, as glibc and musl have it, in a cache line of its own."""
MAX_SPINS = 4000

_post = types.ExternalFunction("sem_post", types.int32(types.voidptr))
_wait = types.ExternalFunction("sem_wait", types.int32(types.voidptr))
_try = types.ExternalFunction("sem_trywait", types.int32(types.voidptr))
_init = types.ExternalFunction("sem_init", types.int32(types.voidptr, types.int32, types.uint32))


@compiled
def init_semaphores(semaphores):
    """Make semaphores [n, SEMAPHORE_INTS] int64 of zeroed memory; all are at 0."""
    for i in range(semaphores.shape[0]):
        _init(semaphores[i].ctypes, 0, 0)


@compiled
def post_all(semaphores):
    """Wake every thread."""
    for i in range(1, semaphores.shape[0]):
        _post(semaphores[i].ctypes)


@compiled
def wait_for(semaphore):
    """Take one from a semaphore, at once if it is about to be there, else asleep."""
    for _ in range(MAX_SPINS):
        if _try(semaphore.ctypes) == 0:
            return
    while _wait(semaphore.ctypes) != 0:  # a signal woke it
        pass


@compiled
def do_share(share, job, min_prob, scratch_table):
    """Do one share of a job."""
    size = job[BATCH_SIZE]
    req_indices = int64_at(job[REQ_INDICES], size)
    requests = int64_table(job[REQUESTS], (job[NUM_REQUESTS], REQUEST_FIELDS))
    corpora = int64_table(job[CORPORA], (job[NUM_CORPORA], CORPUS_FIELDS))
    tables = (
        int64_at(job[TRACE], job[TRACE_FIELDS]),
        int64_at(job[WEIGHTS], job[WEIGHTS_FIELDS]),
    )
    begin, end = size * share // job[SHARES], size * (share + 1) // job[SHARES]
    if job[KIND] == OBSERVE:
        emitted = int32_at(job[EMITTED], job[NUM_EMITTED])
        ends = int64_at(job[ENDS], size)
        observe_batch(
            req_indices, emitted, ends, begin, end, requests, corpora, tables, scratch_table
        )
    elif job[KIND] == LEARN:
        # Either table is learned into in the batch's order, whoever does it.
        alone = job[SHARES] == 1
        learn_batch(req_indices, alone or share == 0, alone or share == 1, requests, tables)
    else:
        limits = int64_at(job[LIMITS], size)
        draft_batch(
            req_indices, limits, min_prob, begin, end, requests, corpora, tables, scratch_table
        )


@compiled
def claim_share(semaphores, last):
    """The last share before `last` that no thread has woken up for, and how many it passed over;
    share 0, which is the caller's own, if there is none."""
    given = 0
    for share in range(last - 1, 0, -1):
        if _try(semaphores[share].ctypes) == 0:
            return share, given
        given += 1
    return np.int64(0), given


@compiled
def work(thread, job, min_prob, semaphores, scratch_tables):
    """Thread 0: do the job, and learn if it was to observe. Others: help, until there is STOP.

    The caller waits for nobody who sleeps: a share that no thread has begun it does itself.

    Args:
        thread: its number.
        job: [JOB_FIELDS] int64.
        min_prob: [1] float64; a draft ends where its probability falls below.
        semaphores: [threads, SEMAPHORE_INTS] int64. The first counts the shares that others have
            done; each other one says to the thread of its number that its share is there.
        scratch_tables: [threads, n] int64, a row as `scratch_table` makes it.
    """
    share = np.int64(thread)
    last = given = np.int64(0)
    while True:
        if thread > 0:
            while _wait(semaphores[thread].ctypes) != 0:  # a signal woke it
                pass
            if job[KIND] == STOP:
                return
        elif share == 0:
            last, given = job[SHARES], np.int64(0)
            for other in range(1, last):
                _post(semaphores[other].ctypes)
        do_share(share, job, min_prob[0], scratch_tables[thread])
        if thread > 0:
            _post(semaphores[0].ctypes)
            continue
        share, passed = claim_share(semaphores, last)
        given += passed
        if share > 0:
            last = share
            continue
        for _ in range(given):
            wait_for(semaphores[0])
        if job[KIND] != OBSERVE:
            return
        job[KIND], job[SHARES] = LEARN, job[LEARN_SHARES]
