"""A faithful stand-in of the first trainers' lock, from its description: PID file, exists? alive? write, unlink.

It has every defect that its description tells: check then create, `kill(pid, 0)` denied is "dead", an unreadable
file is "corrupt" and removed, released without looking whose it is. Usage: old_trainer.py DIR SECONDS [work].
With `work` it keeps its log open and writes checkpoints in place, as the first trainers do.
"""

import contextlib
import os
import sys
import time
import zipfile


class OldLock:
    def __init__(self, directory):
        self.path = os.path.join(directory, "training.lock")

    def acquire(self):
        if os.path.exists(self.path):
            try:
                with open(self.path) as file:
                    pid = int(file.read().strip())
                os.kill(pid, 0)
            except (OSError, ValueError):
                try:
                    os.remove(self.path)
                except OSError:
                    return False
            else:
                return False
        with open(self.path, "w") as file:
            file.write(f"{os.getpid()}\n")
        return True

    def release(self):
        with contextlib.suppress(OSError):
            os.remove(self.path)


def work(directory, seconds):
    """Steps and log lines, and now and then a checkpoint, written in place under its final name."""
    end, step = time.monotonic() + seconds, 0
    with open(os.path.join(directory, "training.log"), "a", buffering=1) as log:
        while time.monotonic() < end:
            step += 1
            log.write(f"PID {os.getpid()} step {step}\n")
            if step % 20 == 1:
                with zipfile.ZipFile(os.path.join(directory, f"checkpoint_{step}.pt"), "w") as file:
                    file.writestr("data", os.urandom(2000))
            time.sleep(0.02)


if __name__ == "__main__":
    lock = OldLock(sys.argv[1])
    if not lock.acquire():
        print("another training process is running", flush=True)
        sys.exit(1)
    print("acquired", flush=True)
    try:
        if sys.argv[3:] == ["work"]:
            work(sys.argv[1], float(sys.argv[2]))
        else:
            time.sleep(float(sys.argv[2]))
    except KeyboardInterrupt:
        pass
    finally:
        lock.release()
