"""The desk: one thread that asks the model, and those who wait for it."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Optional, TypeVar

from mikv_cpp.answer import Speed, context_size
from mikv_cpp.llama import Llama
from mikv_cpp.prompt_cache import PromptCache

T = TypeVar("T")

#: A shorter common beginning, such as the template's own words, is read again: its tokens may have lost their refinement to a
#: conversation that is over, and what is left of that would go on holding refinement until it is overwritten.
WORTH_KEEPING = 64


class Cancelled(Exception):  # noqa: N818 - nobody's error: the client went away, or the server stops
    """The answer is not wanted any more."""


class PromptTooLong(ValueError):  # noqa: N818 - what it is called in OpenAI's answers too
    """A prompt does not fit: n_tokens, and the most that is allowed."""

    def __init__(self, n_tokens: int, most: int) -> None:
        super().__init__(f"the prompt has {n_tokens} tokens, but at most {most} are possible here")


class Busy(Exception):  # noqa: N818 - the same
    """As many requests wait already as may. retry_seconds: when to try again."""

    def __init__(self, retry_seconds: int) -> None:
        super().__init__("too many requests wait already: try again later")
        self.retry_seconds = retry_seconds


@dataclass
class Usage:
    """Tokens of one answer. cached: of the prompt's, those that the cache held already."""

    prompt: int = 0
    cached: int = 0
    generated: int = 0


class ServedLlama(Llama):
    """A Llama that looks up after every batch: `on_eval` may raise to end the answer. It counts tokens and seconds."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.on_eval: Callable[[], None] = lambda: None
        self.usage = Usage()
        self.speed = Speed()
        self.max_prompt = 0
        self.prompt_cache: Optional[PromptCache] = None
        super().__init__(*args, **kwargs)

    def eval(self, tokens: Sequence[int]) -> None:
        """Evaluate tokens, looking up after each batch."""
        for start in range(0, len(tokens), self.n_batch):
            super().eval(tokens[start : start + self.n_batch])
            self.on_eval()

    def generate(self, tokens: Sequence[int], *args: Any, **kwargs: Any) -> Generator[int, Optional[Sequence[int]], None]:
        """As Llama.generate, counted.

        Raises:
            PromptTooLong: of more tokens than max_prompt, or no room for an answer is left in the context.
        """
        tokens = list(tokens)
        most = min(self.max_prompt or context_size(self), context_size(self) - 1)
        if len(tokens) > most:
            raise PromptTooLong(len(tokens), most)
        n_cached = self._swap_states(tokens, min(self.reusable(tokens), len(tokens) - 1))
        if n_cached < min(WORTH_KEEPING, self.n_tokens) or self._lost_by_rollback(n_cached):
            self.forget()
            n_cached = 0
        self.usage = usage = Usage(len(tokens), n_cached)
        last = time.perf_counter()
        try:
            for token in super().generate(tokens, *args, **kwargs):
                self._count(usage, time.perf_counter() - last)
                yield token
                last = time.perf_counter()
        finally:
            sampler: Any = self._sampler
            if sampler is not None:  # it refers to itself: its memory would wait for Python's collector of cycles
                sampler.close()
                self._sampler = None

    def _swap_states(self, tokens: Sequence[int], n_cached: int) -> int:
        """Keep on disk what another conversation displaces, and fetch that one; how many of its tokens are there now."""
        if self.prompt_cache is None or n_cached >= self.n_tokens > 0:
            return n_cached
        self.prompt_cache.keep(self)
        return min(self.prompt_cache.fetch(self, tokens, n_cached), len(tokens) - 1)

    def _count(self, usage: Usage, seconds: float) -> None:
        if usage.generated:
            self.speed.decode_tokens += 1
            self.speed.decode_seconds += seconds
        else:
            self.speed.prompt_tokens += usage.prompt - usage.cached
            self.speed.prompt_seconds += seconds
        usage.generated += 1


@dataclass
class Job:
    """One request. `work` yields what `deliver` is told, in the desk's thread; None says that there is no more."""

    client: str
    work: Callable[[ServedLlama], Iterable[Any]]
    deliver: Callable[[Any], None]
    cancelled: threading.Event = field(default_factory=threading.Event)


class Desk:
    """Asks the model for one client after the other, each client's requests in their order.

    Args:
        llm: the model; from now on only the desk's thread may use it.
        most_waiting: requests that may wait.
    """

    def __init__(self, llm: ServedLlama, most_waiting: int) -> None:
        self._llm = llm
        self._most_waiting = most_waiting
        self._waiting: OrderedDict[str, deque[Job]] = OrderedDict()
        self._glances: deque[tuple[Callable[[ServedLlama], Any], Future[Any]]] = deque()
        self._current: Optional[Job] = None
        self._changed = threading.Condition()
        self._stopping = False
        self._mean_seconds = 1.0  # of a job
        self._thread = threading.Thread(target=self._run, name="desk", daemon=True)
        llm.on_eval = self._look_up
        self._thread.start()

    @property
    def n_waiting(self) -> int:
        """Requests that wait for the model now."""
        with self._changed:
            return sum(len(jobs) for jobs in self._waiting.values())

    @property
    def is_busy(self) -> bool:
        """Whether the model works on an answer."""
        return self._current is not None

    def submit(self, job: Job) -> None:
        """Put a job where its client's turn comes.

        Raises:
            Busy: too many wait.
            Cancelled: the server stops.
        """
        with self._changed:
            if self._stopping:
                raise Cancelled("the server stops")
            n_waiting = sum(len(jobs) for jobs in self._waiting.values())
            if n_waiting >= self._most_waiting:
                raise Busy(max(1, min(60, round(self._mean_seconds * (n_waiting + 1)))))
            self._waiting.setdefault(job.client, deque()).append(job)
            self._changed.notify()

    def glance(self, look: Callable[[ServedLlama], T]) -> Future[T]:
        """Have `look` asked between two batches of the answer that is made, or at once if there is none."""
        future: Future[T] = Future()
        with self._changed:
            if self._stopping:
                future.set_exception(Cancelled("the server stops"))
                return future
            self._glances.append((look, future))
            self._changed.notify()
        return future

    def stop(self) -> None:
        """End the answer that is made, and send away who waits. Harmless when done twice."""
        with self._changed:
            self._stopping = True
            if self._current:
                self._current.cancelled.set()
            for job in (job for jobs in self._waiting.values() for job in jobs):
                job.deliver(Cancelled("the server stops"))
            self._waiting.clear()
            self._changed.notify()

    def join(self, seconds: float) -> None:
        """Wait until the thread has ended, so that the model may be freed."""
        self._thread.join(seconds)

    # --- the thread -----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or self._glances or self._waiting)
                job = None if self._stopping or self._glances else self._next_job()
                self._current = job
            self._answer_glances()
            if job is not None:
                self._work_on(job)
                self._current = None
            elif self._stopping:
                return

    def _next_job(self) -> Job:
        client, jobs = self._waiting.popitem(last=False)
        job = jobs.popleft()
        if jobs:
            self._waiting[client] = jobs  # behind the others
        return job

    def _work_on(self, job: Job) -> None:
        start = time.monotonic()
        try:
            self._look_up()
            for item in job.work(self._llm):
                job.deliver(item)
            job.deliver(None)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this request's; the next one is served
            if isinstance(error, RuntimeError):  # llama_decode failed: what the cache holds is not known
                self._llm.forget()
            job.deliver(error)
        self._mean_seconds += 0.2 * (time.monotonic() - start - self._mean_seconds)

    def _look_up(self) -> None:
        self._answer_glances()
        if self._current is not None and self._current.cancelled.is_set():
            raise Cancelled("the server stops" if self._stopping else "the answer is not wanted any more")

    def _answer_glances(self) -> None:
        while self._glances:
            look, future = self._glances.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(look(self._llm))
            except Exception as error:  # noqa: BLE001 - it belongs to who asked
                future.set_exception(error)
