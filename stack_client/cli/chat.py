"""`stack chat`: a dialog on the terminal, or one answer for a prompt."""

import argparse
import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from llamastack import v1
from stack_client import content
from stack_client.cli.answers import AnswerView
from stack_client.cli.connection import add_target, choose_model, connected
from stack_client.cli.options import Subparsers, home_of, print_json
from stack_client.cli.sampling import add_sampling, prompt_of, sampling_of
from stack_client.errors import StackError
from stack_client.home import Home
from stack_client.portal import SyncStackClient

HISTORY_LINES = 1000


def add_commands(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "chat",
        help="talk to a model",
        description="Talk to a model. With a prompt as argument or through a pipe it answers once. In the dialog "
        "Ctrl-C stops an answer, Ctrl-D leaves, /clear forgets what was said.",
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help="identifier (default: the first that is ready)")
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="answer this and exit")
    parser.add_argument("--system", default="", metavar="TEXT", help="the system message")
    parser.add_argument("--json", action="store_true", help="with a prompt: print JSON")
    add_target(parser)
    add_sampling(parser)
    parser.set_defaults(command=chat, usage_error=parser.error)


def chat(arguments: argparse.Namespace) -> int:
    """Answer once, or hold a dialog."""
    model, given = arguments.model, arguments.prompt
    if model and given is None and any(character.isspace() for character in model):
        model, given = None, model  # identifiers have no spaces, so this is the prompt
    prompt = prompt_of(given)
    interactive = given is None and sys.stdin.isatty()
    if not prompt and not interactive:
        arguments.usage_error("the prompt is empty")
    if arguments.json and interactive:
        arguments.usage_error("--json needs a prompt, as argument or through a pipe")
    with connected(arguments) as client:
        dialog = Dialog(client, choose_model(client, model), system=arguments.system, sampling=sampling_of(arguments))
        if interactive:
            _converse(dialog, home_of(arguments))
        elif arguments.json:
            print_json(dialog.answer_at_once(prompt))
        else:
            dialog.answer(prompt)
    return 0


class Dialog:
    """What was said so far, and saying the next thing."""

    def __init__(self, client: SyncStackClient, model: str, *, system: str, sampling: dict[str, Any]) -> None:
        self.model = model
        self._client = client
        self._sampling = sampling
        self._beginning = [content.message({"role": "system", "content": system})] if system else []
        self._messages = list(self._beginning)

    def clear(self) -> None:
        """Forget everything but the system message."""
        self._messages = list(self._beginning)

    def answer(self, text: str) -> None:
        """Print the model's answer as it is written; what was said before an interrupt stays in the dialog."""
        messages = [*self._messages, content.message(text)]
        with AnswerView() as view:
            try:
                with self._client.inference.stream_chat(self.model, messages, **self._sampling) as events:
                    for event in events:
                        self._show(event, view)
            except KeyboardInterrupt:
                self._remember(messages, view.text)
                raise
            self._remember(messages, view.text)

    def answer_at_once(self, text: str) -> dict[str, object]:
        """The model's answer, for programs."""
        messages = [*self._messages, content.message(text)]
        answer: v1.ChatCompletionResponse = self._client.inference.chat(self.model, messages, **self._sampling)
        return {
            "model": self.model,
            "text": content.text_of(answer.completion_message.content),
            "finish_reason": v1.FinishReason.Name(answer.finish_reason).removeprefix("FINISH_REASON_").lower(),
            "usage": usage_of(answer.usage),
        }

    def _show(self, event: v1.StreamChatCompletionResponse, view: AnswerView) -> None:
        match event.WhichOneof("event"):
            case "progress":
                view.show(event.progress.delta.text)
            case "complete":
                view.show_end(event.complete.finish_reason, event.complete.usage)
            case "blocked":
                view.show(event.blocked.user_message)
                view.show_end(v1.FINISH_REASON_CONTENT_FILTER, event.blocked.usage)

    def _remember(self, messages: list[v1.Message], said: str) -> None:
        self._messages = [*messages, content.message({"role": "assistant", "content": said})]


def usage_of(usage: v1.Usage) -> dict[str, int]:
    """Tokens, for programs."""
    return {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens}


def _converse(dialog: Dialog, home: Home) -> None:
    """Ask and answer until Ctrl-D."""
    print(f"{dialog.model}   Ctrl-C stops an answer, Ctrl-D leaves, /clear begins anew")
    with _history(home):
        while True:
            try:
                text = input("> ").strip()
                if text == "/clear":
                    dialog.clear()
                elif text:
                    dialog.answer(text)
            except KeyboardInterrupt:
                print()
            except StackError as error:
                print(f"error: {error.message}", file=sys.stderr)
            except EOFError:
                print()
                return


@contextlib.contextmanager
def _history(home: Home) -> Iterator[None]:
    """Editing of the line and the prompts of earlier dialogs by the arrow keys, where Python has readline."""
    try:
        import readline  # noqa: PLC0415 (changes what `input` does, and not every system has it)
    except ImportError:
        yield
        return
    file = home.path / "chat_history"
    with contextlib.suppress(OSError):
        readline.read_history_file(file)
    readline.set_history_length(HISTORY_LINES)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            home.path.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(file)
            file.chmod(0o600)
