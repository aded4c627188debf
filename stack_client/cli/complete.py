"""`stack complete`: continue a text."""

import argparse

from llamastack import v1
from stack_client.cli.answers import AnswerView
from stack_client.cli.connection import add_target, choose_model, connected
from stack_client.cli.options import Subparsers, print_json
from stack_client.cli.sampling import add_sampling, prompt_of, sampling_of


def add_commands(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = subparsers.add_parser("complete", help="continue a text, given as argument or through a pipe")
    parser.add_argument("text", nargs="?", metavar="TEXT", help="the beginning (default: what comes through a pipe)")
    parser.add_argument("-m", "--model", metavar="MODEL", help="identifier (default: the first that is ready)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_target(parser)
    add_sampling(parser)
    parser.set_defaults(command=complete, usage_error=parser.error)


def complete(arguments: argparse.Namespace) -> int:
    """Print the continuation as it is written."""
    text, sampling = prompt_of(arguments.text), sampling_of(arguments)
    if not text:
        arguments.usage_error("the text is empty; give it as argument or through a pipe")
    with connected(arguments) as client:
        model = choose_model(client, arguments.model)
        if arguments.json:
            answer: v1.CompletionResponse = client.inference.complete(model, text, **sampling)
            finish = v1.FinishReason.Name(answer.finish_reason).removeprefix("FINISH_REASON_").lower()
            usage = {
                "prompt_tokens": answer.usage.prompt_tokens,
                "completion_tokens": answer.usage.completion_tokens,
            }
            print_json({"model": model, "text": answer.content, "finish_reason": finish, "usage": usage})
            return 0
        with AnswerView() as view, client.inference.stream_complete(model, text, **sampling) as events:
            for event in events:
                if event.WhichOneof("event") == "progress":
                    view.show(event.progress.delta)
                elif event.WhichOneof("event") == "complete":
                    view.show_end(event.complete.finish_reason, event.complete.usage)
    return 0
