"""`qnet crypto`: who does the ciphers of this node or of any io-pkt, moving its sessions to somebody else under traffic, and how fast each
one here is."""

from __future__ import annotations

import argparse

from qnetpy.cli import iopkt
from qnetpy.cli.output import CommandError, as_json, facts, table

SPEEDS = (
    *("aes-128-gcm", "aes-256-gcm", "chacha20-poly1305", "ccmp-128", "aes-128-ctr"),
    *("aes-128-cmac", "hmac-sha256", "sha256", "sha3-256", "blake2b"),
)
SIZES = (64, 1500, 9000)
FOR_TESTS = {"reference": "it is slow, and its timing tells the keys"}
"""Providers that nobody uses by mistake."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    iopkt.add_place(parser)
    parser.add_argument("--json", action="store_true", help="the same facts as JSON, for programs")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    use = verbs.add_parser("use", help="have this provider do the ciphers until the next start; live sessions move")
    use.add_argument("name", help="a provider that `qnet crypto` lists")
    use.add_argument("--anyway", action="store_true", help="one that is for tests, too")
    speed = verbs.add_parser("speed", help="measure the providers of this machine, in this process")
    speed.add_argument("names", nargs="*", metavar="PROVIDER", help="default: all but reference")
    speed.add_argument("--batch", type=int, default=16, metavar="N", help="items per call (default 16)")
    speed.add_argument("--seconds", type=float, default=0.05, help="for each figure (default 0.05)")
    iopkt.add_place(use, again=True)
    for verb in (use, speed):
        verb.add_argument("--json", action="store_true", default=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    if args.verb == "use":
        return _use(args)
    if args.verb == "speed":
        return _speed(args)
    return _show(args)


def _use(args: argparse.Namespace) -> int:
    if args.name in FOR_TESTS and not args.anyway:
        raise CommandError(f"{args.name} is for tests: {FOR_TESTS[args.name]}", "another one, or --anyway")
    moved = iopkt.ask(args, "use-crypto", name=args.name)
    if args.json:
        print(as_json(moved))
    else:
        print(f"{args.name} serves from now on; {moved['moved']} sessions moved, {moved['stayed']} stayed")
    return 0


def _show(args: argparse.Namespace) -> int:
    found = iopkt.ask(args, "crypto")
    if args.json:
        print(as_json(found))
        return 0
    providers = found["providers"]
    assert isinstance(providers, list)
    rows = []
    for one in providers:
        sessions = ", ".join(f"{count} {name}" for name, count in sorted(one["sessions"].items())) or "none"
        state = one["problem"] or ("when named" if one["by_name"] else "ready")
        rows.append([one["name"], one["module"] or "-", state, len(one["algorithms"]), ", ".join(one["hardware"]) or "-", sessions])
    print(table(rows, ("PROVIDER", "MODULE", "STATE", "ALGORITHMS", "HARDWARE", "SESSIONS")))
    kinds: dict[str, list[str]] = {}
    for one in providers:
        for name, kind in one["algorithms"].items():
            if name not in kinds.setdefault(kind, []):
                kinds[kind].append(name)
    print()
    print(facts({kind: ", ".join(names) for kind, names in kinds.items()} | {"moved": iopkt.counted(found["moves"]) or "nothing"}))
    return 0


def _speed(args: argparse.Namespace) -> int:
    import time

    from stack.crypto.algorithms import algorithm_named
    from stack.crypto.registry import standard_crypto
    from stack.crypto.speed import batch, measure

    if args.batch < 1 or not 0 < args.seconds <= 60:
        raise CommandError("a batch has one item at least, and a figure takes up to 60 seconds", status=2)
    crypto = standard_crypto()
    told: dict[str, dict[str, dict[str, float]]] = {}
    for name in args.names or [one for one in crypto.names if one not in FOR_TESTS]:
        try:
            provider = crypto.provider(name)
        except LookupError as error:
            raise CommandError(str(error.args[0])) from None
        except OSError as error:
            if args.names:
                raise CommandError(f"{name} cannot be used here: {error.strerror or error}") from error
            continue
        for algorithm in map(algorithm_named, SPEEDS):
            if algorithm in provider.algorithms:
                rates = told.setdefault(name, {}).setdefault(algorithm.name, {})
                for size in SIZES:
                    call = batch(provider, algorithm, size, args.batch)
                    rates[str(size)] = measure(call, size, args.batch, args.seconds, time.perf_counter).rate
    if args.json:
        print(as_json({"batch": args.batch, "bytes_per_second": told}))
        return 0
    rows = [
        [provider, name, *(f"{rate / 1e6:,.1f}" for rate in rates.values())]
        for provider, algorithms in told.items()
        for name, rates in algorithms.items()
    ]
    print(table(rows, ("PROVIDER", "ALGORITHM", *(f"{size} B" for size in SIZES))))
    print(f"\nMB/s, {args.batch} items per call, one thread of this process unless the provider has more")
    return 0
