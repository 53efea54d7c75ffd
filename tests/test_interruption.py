"""Interrupting a notebook's cell: a sentence, no traceback, and a kernel that goes on."""

import pytest
from jupyter_client.manager import start_new_kernel

LOOP = "import time\n\ndef wait():\n    print('waiting')\n    time.sleep(60)\n\nn = 7\n"


@pytest.fixture(scope="module")
def run():
    """A function that runs a cell, and interrupts it once it prints. -> its status, its text, its errors"""
    manager, client = start_new_kernel()

    def run(source: str) -> tuple[str, str, list[str]]:
        request, text, errors = client.execute(source), "", []
        while True:
            message = client.get_iopub_msg(timeout=60)
            kind, content = message["msg_type"], message["content"]
            if message["parent_header"].get("msg_id") != request:
                continue
            if kind == "stream":
                text += content["text"]
                if content["text"] == "waiting\n":
                    manager.interrupt_kernel()
            elif kind == "error":
                errors.append(content["ename"])
            elif kind == "status" and content["execution_state"] == "idle":
                break
        while (reply := client.get_shell_msg(timeout=60))["parent_header"].get("msg_id") != request:
            pass  # a kernel that was slow to start is asked twice whether it is there, and answers twice
        return reply["content"]["status"], text, errors

    assert run("from course import interruption; interruption.in_words()") == ("ok", "", [])
    yield run
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def test_an_interrupted_cell_says_where_it_was_and_what_to_do(run):
    said = "waiting\nYou interrupted this cell at its line 8. Run it again, or go on below.\n"
    assert run(LOOP + "wait()") == ("error", said, [])  # an error: what waits behind it is not run
    assert run("print(n)") == ("ok", "7\n", [])


def test_the_line_is_of_this_cell_whatever_it_calls(run):
    run("def later():\n    1\n    2\n    wait()")
    assert "at its line 2." in run("n = 8\nlater()")[1]


def test_what_was_interrupted_can_say_more(run):
    _, text, errors = run("raise KeyboardInterrupt('Step 3 is stored.')")
    assert not errors and "line 1. Step 3 is stored. Run it again" in text


def test_other_errors_are_errors_as_ever(run):
    assert run("1 / 0") == ("error", "", ["ZeroDivisionError"])


def test_outside_of_a_notebook_nothing_happens():
    from course import interruption

    interruption.in_words()
