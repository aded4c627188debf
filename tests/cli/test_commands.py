"""`stack chat`, `complete`, `embed` and `models` in a pipe: plain output, JSON, exit codes, error lines."""

import json
import signal
from pathlib import Path

import pytest

from tests.cli.conftest import BOUND_SECONDS, COMMAND, Command
from tests.stacks import StackProcess, running


def test_chat_answers_a_prompt_and_exits(command: Command) -> None:
    done = command("chat", "scripted", "say hello there")
    assert (done.returncode, done.stdout, done.stderr) == (0, "hello there\n", "")


def test_chat_takes_the_first_ready_model_when_only_a_prompt_is_given(command: Command) -> None:
    assert command("chat", "say hello there").stdout == "hello there\n"


def test_chat_reads_its_prompt_from_a_pipe(command: Command) -> None:
    assert command("chat", stdin="say piped\n").stdout == "piped\n"
    assert command("chat", "scripted", stdin="say piped\n").stdout == "piped\n"


def test_chat_sends_system_message_and_sampling(command: Command) -> None:
    done = command("chat", "scripted", "say a b c", "--system", "Be brief.", "--max-tokens", "2", "--json")
    answer = json.loads(done.stdout)
    assert answer == {
        "model": "scripted",
        "text": "a b",
        "finish_reason": "length",
        "usage": {"prompt_tokens": 6, "completion_tokens": 2},
    }


def test_an_answer_that_was_cut_off_says_so_beside_the_output(command: Command) -> None:
    done = command("chat", "scripted", "say a b c", "--max-tokens", "2")
    assert (done.returncode, done.stdout, done.stderr) == (0, "a b\n", "the answer was cut off at its length\n")


def test_complete_continues_a_text(command: Command) -> None:
    assert command("complete", "say more").stdout == "more\n"
    assert command("complete", "--model", "scripted", stdin="say more").stdout == "more\n"
    assert json.loads(command("complete", "say more", "--json").stdout)["text"] == "more"


def test_embed_prints_a_vector_a_line(command: Command) -> None:
    lines = command("embed", "a cat", "a dog").stdout.splitlines()
    assert [len(json.loads(line)) for line in lines] == [16, 16]
    assert command("embed", stdin="a cat\n\na dog\n").stdout.splitlines() == lines
    document = json.loads(command("embed", "--json", "-m", "words", "a cat", "a dog").stdout)
    assert document == {"model": "words", "embeddings": [json.loads(line) for line in lines]}


def test_models_lists_what_is_served(command: Command) -> None:
    done = command("models")
    assert done.returncode == 0
    assert "scripted llm ready scripted scripted" in done.stdout.splitlines()
    assert "words embedding ready scripted words" in done.stdout.splitlines()
    assert command("models", "list").stdout == done.stdout
    listed = {model["model"]: model for model in json.loads(command("models", "--json").stdout)}
    assert listed["words"]["type"] == "embedding"
    assert listed["words"]["state"] == "ready"


def test_models_are_registered_and_unregistered(command: Command) -> None:
    script = '{"script": [{"reply": "I am new."}]}'
    done = command("models", "register", "new", "--provider", "scripted", "--metadata", script)
    assert (done.returncode, done.stdout) == (0, "new is ready\n")
    assert command("chat", "new", "hi").stdout == "I am new.\n"
    assert json.loads(command("models", "unregister", "new", "--json").stdout) == {"unregistered": ["new"]}
    done = command("models", "unregister", "new")
    assert done.returncode == 1
    assert done.stderr.startswith("error: no model 'new'; this stack serves: ")


def test_a_classifier_is_registered_by_its_type(command: Command) -> None:
    script = '{"script": [{"match": "ignore", "scores": {"malicious": 0.9}}]}'
    done = command(
        "models", "register", "guard", "--type", "classifier", "--provider", "scripted", "--metadata", script
    )
    assert (done.returncode, done.stdout) == (0, "guard is ready\n")
    assert "guard classifier ready scripted guard" in command("models", "list").stdout.splitlines()
    failed = command("chat", "guard", "hi")
    assert "error: model 'guard' is a classifier model; this call needs an llm model" in failed.stderr
    assert command("models", "unregister", "guard").returncode == 0


def test_a_model_that_cannot_be_loaded_fails_its_registration(command: Command) -> None:
    done = command("models", "register", "bad", "--provider", "scripted", "--metadata", '{"script": [{"match": "("}]}')
    assert done.returncode == 1
    assert "error: model 'bad' could not be loaded" in done.stderr
    assert command("models", "unregister", "bad").returncode == 0


def test_options_count_before_and_after_the_action(command: Command, stack: StackProcess, tmp_path: Path) -> None:
    home = str(stack.home)
    assert "words" in command("models", "--home", home, "list", home=str(tmp_path)).stdout
    assert "words" in command("models", "list", "--home", home, home=str(tmp_path)).stdout
    assert command("models", "list", home=str(tmp_path)).returncode == 1


def test_an_address_picks_a_stack_elsewhere(command: Command, stack: StackProcess, tmp_path: Path) -> None:
    address = stack.addresses["inference"]
    done = command("chat", "--address", address, "scripted", "say far away", home=str(tmp_path))
    assert done.stdout == "far away\n"


@pytest.mark.parametrize(
    "arguments", [["chat", "m", "hi"], ["complete", "hi"], ["embed", "hi"], ["models"], ["models", "unregister", "m"]]
)
def test_without_a_running_stack_the_way_out_is_named(command: Command, tmp_path: Path, arguments: list[str]) -> None:
    done = command(*arguments, home=str(tmp_path))
    message = f"error: no stack is running in {tmp_path}; start one with `stack up`\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", message)


def test_an_address_where_nothing_answers_is_named(command: Command, tmp_path: Path) -> None:
    done = command("chat", "m", "hi", "--address", f"unix:{tmp_path}/none.sock")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: nothing answers at unix:{tmp_path}/none.sock")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["chat", "llama-9b", "hi"], "error: no model 'llama-9b'; this stack serves: "),
        (["chat", "words", "hi"], "error: model 'words' is an embedding model; "),
        (
            ["chat", "scripted", "hi", "--temperature", "9"],
            "error: sampling_params.strategy.top_p.temperature is 9.0; ",
        ),
        (["chat", "scripted", "break"], "error: the scripted engine broke"),
        (["embed", "-m", "scripted", "hi"], "error: model 'scripted' is an llm model; "),
    ],
)
def test_a_failure_is_one_line_and_exit_code_1(command: Command, arguments: list[str], said: str) -> None:
    done = command(*arguments)
    assert done.returncode == 1
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["chat", "scripted"],
        ["chat", "scripted", ""],
        ["complete"],
        ["embed"],
        ["chat", "m", "hi", "--temperature", "hot"],
        ["models", "register"],
        ["models", "register", "m", "--metadata", "[1]"],
        ["no-such-command"],
        [],
    ],
)
def test_wrong_usage_is_exit_code_2(command: Command, arguments: list[str]) -> None:
    done = command(*arguments)
    assert done.returncode == 2
    assert "usage: stack" in done.stderr
    assert "error: " in done.stderr


def test_an_interrupt_is_exit_code_130_and_no_stack_trace(stack: StackProcess) -> None:
    with running([*COMMAND, "chat", "scripted", "hang"], STACK_HOME=str(stack.home)) as process:
        assert process.stdout is not None
        assert process.stdout.read(3) == "one"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=BOUND_SECONDS)
        assert (process.returncode, errors) == (130, "")


def test_a_reader_that_leaves_ends_the_command_quietly(stack: StackProcess) -> None:
    with running([*COMMAND, "chat", "scripted", "say " + "word " * 2000], STACK_HOME=str(stack.home)) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(4)
        process.stdout.close()
        assert "Traceback" not in process.stderr.read()
        process.wait(BOUND_SECONDS)


@pytest.mark.parametrize("arguments", [["chat"], ["complete"], ["embed"], ["models"], ["models", "register"]])
def test_every_command_explains_itself(command: Command, arguments: list[str]) -> None:
    done = command(*arguments, "--help")
    assert done.returncode == 0
    assert f"usage: stack {' '.join(arguments)}" in done.stdout


def test_an_adapter_takes_the_provider_of_its_base(command: Command) -> None:
    done = command("models", "register", "scripted@polite", "/adapters/polite")
    assert "the scripted provider has no adapters" in done.stderr
    assert json.loads(command("models", "unregister", "scripted@polite", "--json").stdout)
    done = command("models", "register", "nobody@polite")
    assert "no model 'nobody'" in done.stderr
