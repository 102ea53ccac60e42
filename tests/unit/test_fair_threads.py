"""Threads that many tenants share: no tenant holds more than its share."""

import threading
from concurrent.futures import CancelledError, wait

import pytest

from tenantsync.errors import TenantUnavailable
from tenantsync.sync.threads import FairThreads


def test_a_tenant_that_hangs_holds_its_share_and_others_pass_it_by():
    """Of four threads two hang; what another tenant asks is answered meanwhile."""
    threads, gate = FairThreads(4, share=2), threading.Event()
    stuck = [threads.submit("slow", lambda n=n: (gate.wait(30), n)[1]) for n in range(6)]

    assert [threads.submit("quick", lambda n=n: n).result(30) for n in range(20)] == list(range(20))
    assert not any(answer.done() for answer in stuck)
    gate.set()
    assert [answer.result(30) for answer in stuck] == list(range(6))
    threads.close()
    assert threads._queues == {}


def test_never_more_than_the_share_run_for_one_tenant():
    """However many are asked for, and all of them run in the end."""
    threads, lock = FairThreads(8, share=3), threading.Lock()
    running, most = [0], [0]

    def count():
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        threading.Event().wait(0.001)
        with lock:
            running[0] -= 1

    answers = [threads.submit("one", count) for _ in range(60)]
    assert len(wait(answers, 30).done) == 60
    assert most[0] <= 3
    threads.close()


def test_an_error_goes_to_whom_it_belongs_and_the_next_one_runs():
    """Whatever a function raises, its thread goes on."""
    threads = FairThreads(1, share=1)

    def fail():
        raise SystemExit

    failed, well = threads.submit("one", fail), threads.submit("one", lambda: 7)
    with pytest.raises(SystemExit):
        failed.result(30)
    assert well.result(30) == 7
    threads.close()


def test_a_caller_who_gave_up_is_not_worked_for():
    """What was cancelled while it waited never runs."""
    threads, gate, ran = FairThreads(1, share=1), threading.Event(), []
    first = threads.submit("one", lambda: gate.wait(30))
    given_up = threads.submit("one", lambda: ran.append(1))
    last = threads.submit("one", lambda: "last")
    assert given_up.cancel()
    gate.set()

    assert (first.result(30), last.result(30)) == (True, "last")
    with pytest.raises(CancelledError):
        given_up.result(0)
    assert ran == []
    threads.close()


def test_too_many_callers_and_a_closed_one_are_refused():
    """One tenant's queue is bounded; at the end whoever waits is told so."""
    threads, gate = FairThreads(1, share=1, max_waiting=1), threading.Event()
    running = threads.submit("one", lambda: gate.wait(30))
    waiting = threads.submit("one", lambda: 1)
    with pytest.raises(TenantUnavailable, match="wait for this tenant"):
        threads.submit("one", lambda: 2)
    closing = threading.Thread(target=threads.close)
    closing.start()
    with pytest.raises(TenantUnavailable, match="stopping"):
        waiting.result(30)
    gate.set()
    closing.join()
    assert running.result(0)
    with pytest.raises(TenantUnavailable, match="stopping"):
        threads.submit("two", lambda: 1)


def refuse(thread):
    raise RuntimeError("can't start new thread")


def test_who_finds_no_thread_is_refused_and_the_next_one_served(monkeypatch):
    """What was refused is not called later, and takes nothing of the tenant's share."""
    threads, ran = FairThreads(2, share=1), []
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        for _ in range(3):
            with pytest.raises(TenantUnavailable, match="no more threads"):
                threads.submit("one", lambda: ran.append("refused"))

    assert threads.submit("one", lambda: 7).result(30) == 7
    threads.close()
    assert (ran, threads._queues) == ([], {})


def test_who_waits_is_served_by_the_thread_that_is_there(monkeypatch):
    """Where no further one can be started, it goes on itself."""
    threads, gate = FairThreads(2, share=1), threading.Event()
    first = threads.submit("one", lambda: gate.wait(30))
    waiting = [threads.submit("one", lambda n=n: n) for n in range(3)]
    monkeypatch.setattr(threading.Thread, "start", refuse)
    gate.set()

    assert first.result(30)
    assert [answer.result(30) for answer in waiting] == [0, 1, 2]
    threads.close()
    assert threads._queues == {}
