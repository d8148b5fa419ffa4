"""Writes to two filesystems in a fixed order, so that one instant of both can be told from a mixture of two; and checks such an instant.

    workload.py write A B    until it is killed
    workload.py check A B    one line about what is there; anything else is an error
"""

import hashlib
import os
import sqlite3
import sys
import time

ROWS = 5
KEPT = 200


def counter_text(number):
    body = f"{number}\n" * 3000
    return body + hashlib.sha256(body.encode()).hexdigest()


def put(directory, name, number, sync):
    temporary = os.path.join(directory, name + ".new")
    with open(temporary, "w") as file:
        file.write(counter_text(number))
        if sync:
            file.flush()
            os.fsync(file.fileno())
    os.rename(temporary, os.path.join(directory, name))


def counter(directory, name):
    with open(os.path.join(directory, name)) as file:
        text = file.read()
    number = int(text.split("\n", 1)[0])
    assert text == counter_text(number), f"{name} is not what was written"
    return number


def database(directory, journal):
    found = sqlite3.connect(os.path.join(directory, "database"), isolation_level=None)
    assert found.execute(f"PRAGMA journal_mode={journal}").fetchone()[0] == journal
    return found


def transact(found, number):
    found.execute("BEGIN")
    for place in range(ROWS):
        data = os.urandom(1000)
        row = (number, place, data, hashlib.sha256(data).digest())
        found.execute("INSERT INTO rows VALUES (?, ?, ?, ?)", row)
    found.execute("DELETE FROM rows WHERE number <= ?", (number - KEPT,))
    found.execute("COMMIT")


def write(a, b):
    databases = [database(a, "delete"), database(b, "wal")]
    for found in databases:
        found.execute("CREATE TABLE rows (number INTEGER, place INTEGER, data BLOB, sum BLOB)")
    number = 0
    while True:
        number += 1
        sync = number % 8 == 0
        put(a, "first", number, sync)
        put(b, "second", number, sync)
        for found in databases:
            transact(found, number)
        put(b, "last", number, sync)
        if number == 1:
            print("ready", flush=True)
        time.sleep(0.005)


def transactions(directory, journal):
    found = database(directory, journal)
    assert found.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    counts = {}
    for number, data, checksum in found.execute("SELECT number, data, sum FROM rows"):
        assert hashlib.sha256(data).digest() == checksum, f"a row of transaction {number}"
        counts[number] = counts.get(number, 0) + 1
    last = max(counts)
    assert counts == {number: ROWS for number in range(max(1, last - KEPT + 1), last + 1)}
    return last


def check(a, b):
    order = [
        ("first", counter(a, "first")),
        ("second", counter(b, "second")),
        ("database on A", transactions(a, "delete")),
        ("database on B", transactions(b, "wal")),
        ("last", counter(b, "last")),
    ]
    for (_, before), (_, after) in zip(order, order[1:]):
        assert before >= after, f"written later, and there already: {order}"
    assert order[0][1] <= order[-1][1] + 1, f"of different moments: {order}"
    print(order)


{"write": write, "check": check}[sys.argv[1]](sys.argv[2], sys.argv[3])
