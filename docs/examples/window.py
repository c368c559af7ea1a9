"""A small desktop window: a conversation, and beside it the cache as it fills, one column a token, one row a layer and KV head.

    python docs/examples/window.py [model.gguf]

Dark is exact, blue is refined, pale is base alone. Needs nothing but mikv_cpp and Python's own tkinter.
"""

from __future__ import annotations

import queue
import sys
import threading
import tkinter as tk
from tkinter import scrolledtext
from typing import Any, Optional

import numpy as np
from numpy.typing import NDArray

from mikv_cpp import Llama
from mikv_cpp.models import default_model

WIDTH, HEIGHT = 420, 480
COLOURS = {"empty": (245, 245, 245), "base": (190, 210, 235), "refined": (50, 105, 190), "exact": (20, 25, 40)}


def picture(llm: Llama) -> NDArray[np.uint8]:
    """uint8 [HEIGHT, WIDTH, 3]: the precision of every row in the cache."""
    base = {layer.layer: layer.k_bits for layer in llm.kv.stats().by_layer}
    rows = []
    for layer in llm.kv.layers:
        bits = llm.kv.precision_map(layer)
        rows += list(np.select([bits == 0, bits == 16, bits > base[layer]], [0, 3, 2], 1))
    n_tokens = max((len(row) for row in rows), default=0)
    if not n_tokens:
        return np.full((HEIGHT, WIDTH, 3), COLOURS["empty"], np.uint8)
    tiers = np.stack([np.pad(row, (0, n_tokens - len(row))) for row in rows])
    palette = np.array([COLOURS[name] for name in ("empty", "base", "refined", "exact")], np.uint8)
    down, across = np.arange(HEIGHT) * len(tiers) // HEIGHT, np.arange(WIDTH) * n_tokens // WIDTH
    return palette[tiers[np.ix_(down, across)]]


class Window:
    """The window; `llm` answers in a thread of its own, and only this thread touches tkinter."""

    def __init__(self, llm: Llama) -> None:
        self.root = tk.Tk()
        self.root.title("mikv_cpp")
        self.busy = False
        self._llm = llm
        self._said: queue.Queue[Optional[str]] = queue.Queue()
        self._messages: list[Any] = []
        self._text = scrolledtext.ScrolledText(self.root, wrap="word", width=60, state="disabled")
        self._text.grid(row=0, column=0, sticky="nsew", padx=6, pady=6)
        self.entry = tk.Entry(self.root)
        self.entry.grid(row=1, column=0, sticky="ew", padx=6, pady=6)
        self.entry.bind("<Return>", lambda _event: self.ask())
        self.entry.focus()
        self._picture = tk.Label(self.root)
        self._picture.grid(row=0, column=1, padx=6, pady=6)
        self.status = tk.Label(self.root, anchor="w")
        self.status.grid(row=1, column=1, sticky="ew", padx=6)
        self.root.columnconfigure(0, weight=1)
        self.root.rowconfigure(0, weight=1)
        self._show()

    def ask(self) -> None:
        """Send what stands in the entry."""
        question = self.entry.get().strip()
        if question and not self.busy:
            self.busy = True
            self.entry.delete(0, "end")
            self._write(f"> {question}\n")
            self._messages.append({"role": "user", "content": question})
            threading.Thread(target=self._answer, daemon=True).start()
            self.root.after(50, self._listen)

    def _answer(self) -> None:
        answer = ""
        try:
            for part in self._llm.create_chat_completion(messages=self._messages, max_tokens=256, stream=True):
                piece = part["choices"][0]["delta"].get("content") or ""
                answer += piece
                self._said.put(piece)
        except (ValueError, RuntimeError) as error:  # the context is full
            self._said.put(f"\n({error})")
        self._messages.append({"role": "assistant", "content": answer})
        self._said.put(None)

    def _listen(self) -> None:
        while not self._said.empty():
            piece = self._said.get()
            if piece is None:
                self.busy = False
                self._write("\n\n")
                self._show()  # the cache is not asked while the model works on it
                return
            self._write(piece)
        self.root.after(50, self._listen)

    def _write(self, text: str) -> None:
        self._text.configure(state="normal")
        self._text.insert("end", text)
        self._text.see("end")
        self._text.configure(state="disabled")

    def _show(self) -> None:
        stats = self._llm.kv.stats()
        used, plain = stats.bytes_used / 2**20, stats.bytes_used_f16 / 2**20
        self.status.configure(text=f"{stats.tokens} tokens in {used:.1f} MiB, in f16 {plain:.1f} MiB")
        pixels = picture(self._llm)
        self.image = tk.PhotoImage(data=b"P6 %d %d 255 " % (WIDTH, HEIGHT) + pixels.tobytes(), format="PPM")
        self._picture.configure(image=self.image)


def main() -> None:
    """Open the window on the model that is named, or on the small default."""
    model = sys.argv[1] if len(sys.argv) > 1 else str(default_model())
    Window(Llama(model, n_ctx=4096, verbose=False)).root.mainloop()


if __name__ == "__main__":
    main()
