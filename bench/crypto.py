"""The crypto API beside `openssl speed`: batches of 1, 16 and 64 items of 64, 1500 and 9000 bytes, and where the provider `threads` pays.

    python bench/crypto.py [--seconds 0.3] [--rounds 3] [--json]

`openssl speed` is OpenSSL's own loop in C over one message after another (`-aead`: with nonce, 13 bytes of associated data and tag
each), of the OpenSSL that this machine has, which is seldom the one inside `cryptography`. Both sides count processor time, so that
others on the machine disturb the ratio little; the two alternate, and the median of the rounds counts. The threads of a batch are
measured by the clock, since that is what they are for.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import time

from stack.crypto.algorithms import algorithm_named
from stack.crypto.api import Provider
from stack.crypto.registry import standard_crypto
from stack.crypto.speed import batch, measure

PEERS = {
    "aes-128-gcm": ("-aead", "-evp", "aes-128-gcm"),
    "aes-256-gcm": ("-aead", "-evp", "aes-256-gcm"),
    "chacha20-poly1305": ("-aead", "-evp", "chacha20-poly1305"),
    "aes-128-ccm": ("-aead", "-evp", "aes-128-ccm"),
    "aes-128-ctr": ("-evp", "aes-128-ctr"),
    "aes-128-cmac": ("-cmac", "aes-128-cbc"),
    "hmac-sha256": ("-hmac", "sha256"),
    "sha256": ("-evp", "sha256"),
    "sha3-256": ("-evp", "sha3-256"),
    "blake2b": ("-evp", "blake2b512"),
}
SIZES = (64, 1500, 9000)
BATCHES = (1, 16, 64)
CUT = ("aes-128-gcm", "chacha20-poly1305", "hmac-sha256", "sha3-256")
CUT_SIZES = ((1500, 64), (9000, 64), (65536, 16), (65536, 64))


def peer(words: tuple[str, ...], size: int) -> float:
    """Bytes per second of processor time."""
    argv = ["openssl", "speed", *words, "-bytes", str(size), "-seconds", "1", "-mr"]
    told = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    return float(next(line for line in told.splitlines() if line.startswith("+F:")).rpartition(":")[2])


def ours(provider: Provider, name: str, size: int, count: int, seconds: float) -> float:
    """Bytes per second of processor time."""
    call = batch(provider, algorithm_named(name), size, count)
    return measure(call, size, count, seconds, time.process_time).rate


def beside_openssl(seconds: float, rounds: int) -> dict[str, dict[str, dict[str, float]]]:
    """By algorithm and size: the peer's rate, and our part of it by batch."""
    provider = standard_crypto().provider("openssl")
    told: dict[str, dict[str, dict[str, float]]] = {}
    for name, words in PEERS.items():
        for size in SIZES:
            taken = []
            for _ in range(rounds):
                theirs = peer(words, size)
                taken.append((theirs, [ours(provider, name, size, count, seconds) / theirs for count in BATCHES]))
            row = {"openssl": statistics.median(theirs for theirs, _ in taken)}
            row |= {str(count): statistics.median(parts[at] for _, parts in taken) for at, count in enumerate(BATCHES)}
            told.setdefault(name, {})[str(size)] = row
    return told


def cut_and_whole(seconds: float, rounds: int) -> dict[str, dict[str, float]]:
    """By algorithm: the time of `openssl` to that of `threads`, for batches `items x size`; the median of alternating rounds."""
    crypto = standard_crypto()
    providers = [crypto.provider("openssl"), crypto.provider("threads")]
    told: dict[str, dict[str, float]] = {}
    for name in CUT:
        for size, count in CUT_SIZES:
            calls = [batch(provider, algorithm_named(name), size, count) for provider in providers]
            ratios = []
            for _ in range(3 * rounds):
                whole, cut = (measure(call, size, count, seconds / 3, time.perf_counter).cost for call in calls)
                ratios.append(whole / cut)
            told.setdefault(name, {})[f"{count} x {size}"] = statistics.median(ratios)
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description="the crypto API beside openssl speed")
    parser.add_argument("--seconds", type=float, default=0.3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rates, cuts = beside_openssl(args.seconds, args.rounds), cut_and_whole(args.seconds, args.rounds)
    if args.json:
        print(json.dumps({"beside_openssl": rates, "threads": cuts}, indent=1))
        return
    print("part of openssl speed's rate, batches of 1, 16, 64 (openssl speed in MB/s)")
    for name, sizes in rates.items():
        cells = [f"{' '.join(f'{row[str(count)]:.2f}' for count in BATCHES)} ({row['openssl'] / 1e6:,.0f})" for row in sizes.values()]
        print(f"{name:20}", *(f"{cell:24}" for cell in cells))
    print("\ntime of openssl to that of threads, by items x size")
    for name, row in cuts.items():
        print(f"{name:20}", *(f"{what}: {ratio:.2f} " for what, ratio in row.items()))


if __name__ == "__main__":
    main()
