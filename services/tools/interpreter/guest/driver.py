"""What runs inside the sandbox: one piece of code in a namespace that can be kept in a file.

It reads `job` and `code` from a folder that it cannot write, and writes `restored` and `result` into another. It is
alone: no other module of ours, no package but cloudpickle, any Python from 3.9, and few imports, since in WebAssembly
each costs milliseconds.
"""

import builtins
import os
import sys

MAX_TEXT = 20_000
"""Characters of an error that are told."""
_ONLY_TREE = 0x400
"""ast.PyCF_ONLY_AST, without importing ast."""


class Namespace:
    """The variables of a session, and what happens to them.

    Attributes:
        state: Folder of the session's state.
        lost: Names that could not be kept, and why.
        note: What could not be restored; empty when all was.
    """

    def __init__(self, state, cloudpickle):
        self.state, self._cloudpickle = state, cloudpickle
        self.module = type(sys)("__main__")
        self.module.__dict__.update(__builtins__=builtins, exit=sys.exit, quit=sys.exit)
        sys.modules["__main__"] = self.module
        self._given = set(self.module.__dict__)
        self.lost, self.note = {}, ""

    def restore(self):
        """Read what an earlier call kept."""
        import _pickle

        if not os.path.exists(self.state + "/variables"):
            return
        try:
            with open(self.state + "/variables", "rb") as file:
                modules, by_value = _pickle.load(file)
                if by_value:
                    self._cloudpickle()
                names = self.module.__dict__

                class Bound(_pickle.Unpickler):
                    def persistent_load(self, one):
                        return names

                for name, module in modules.items():
                    __import__(module)
                    self.module.__dict__[name] = sys.modules[module]
                names.update(Bound(file).load())
        except BaseException as error:  # a pickle runs anything
            self.note = "variables of earlier calls could not be restored (%s): define them again" % describe(error)

    def save(self, limit):
        """Keep what can be kept; the file is replaced at once or not at all."""
        import _pickle

        kept, modules = {}, {}
        for name, value in list(self.module.__dict__.items()):
            if name in self._given or name.startswith("__"):
                continue
            if type(value) is type(sys):
                modules[name] = value.__name__
            else:
                kept[name] = value
        try:
            by_value, data = self._dump(kept)
            head = _pickle.dumps((modules, by_value))
            if len(data) > limit:
                self.lost = {name: "too large together (%d bytes, at most %d)" % (len(data), limit) for name in kept}
                data = _pickle.dumps({})
            with open(self.state + "/variables.new", "wb") as file:
                file.write(head + data)
            os.replace(self.state + "/variables.new", self.state + "/variables")
        except BaseException as error:
            self.lost = {name: describe(error) for name in kept}

    def _dump(self, kept):
        """Whether functions or classes of the session are in it, and the bytes; drops from `kept` what cannot be."""
        try:
            return self._pickle(kept)
        except Exception:
            for name in list(kept):
                try:
                    self._pickle(kept[name])
                except Exception as error:
                    self.lost[name] = "%s: %s" % (type(kept.pop(name)).__name__, describe(error))
            return self._pickle(kept)

    def _pickle(self, value):
        import _pickle
        import io

        class Plain(_pickle.Pickler):
            def reducer_override(self, one):
                if getattr(one, "__module__", None) == "__main__" and isinstance(one, (type, type(describe))):
                    raise _OursError
                return NotImplemented

        target = io.BytesIO()
        try:
            Plain(target, protocol=5).dump(value)
        except _OursError:
            return True, self._by_value(value)
        return False, target.getvalue()

    def _by_value(self, value):
        """Functions and classes with their code. Their globals are the namespace itself, now and after."""
        import io

        names = self.module.__dict__

        class Whole(self._cloudpickle().Pickler):
            def persistent_id(self, one):
                return "names" if one is names else None

        target = io.BytesIO()
        pickler = Whole(target, protocol=5)
        pickler.globals_ref[id(names)] = names
        pickler.dump(value)
        return target.getvalue()


class _OursError(Exception):
    """A function or class of the session, which has to be kept by value."""


def execute(code, *, module, number):
    """Run code as an interpreter does, showing the value of a last expression; returns the error as text, or ""."""
    name = "<cell %d>" % number
    try:
        tree = compile(code, name, "exec", _ONLY_TREE)
        last = tree.body.pop() if tree.body and type(tree.body[-1]).__name__ == "Expr" else None
        exec(compile(tree, name, "exec"), module.__dict__)
        if last is not None:
            import _ast

            exec(compile(_ast.Interactive(body=[last]), name, "single"), module.__dict__)
    except SystemExit as end:
        return "" if end.code in (None, 0) else "the code ended itself with status %s" % str(end.code)[:200]
    except BaseException as error:
        return _told(error, name, code)
    return ""


def describe(error):
    """An error in one line."""
    try:
        return ("%s: %s" % (type(error).__name__, error))[:300]
    except BaseException:
        return type(error).__name__


def _told(error, name, code):
    """The traceback with the frames of the session's own code, and the last."""
    try:
        import linecache
        import traceback

        linecache.cache[name] = (len(code), None, (code + "\n").splitlines(True), name)
        whole = one = traceback.TracebackException(type(error), error, error.__traceback__)
        seen = set()
        while one is not None and id(one) not in seen:
            seen.add(id(one))
            frames = [frame for frame in one.stack if frame.filename != call.__code__.co_filename]
            ours = [frame for frame in frames if frame.filename.startswith("<cell") or frame is frames[-1]]
            one.stack = traceback.StackSummary.from_list(ours)
            one = one.__cause__ or one.__context__
        text = "".join(whole.format())
    except BaseException:  # an exception whose text raises
        text = describe(error)
    if len(text) > MAX_TEXT:
        text = text[: MAX_TEXT // 2] + "\n...\n" + text[-MAX_TEXT // 2 :]
    return text


def flush():
    """Write out what is buffered, whatever became of the streams."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BaseException:
            pass


def read_job(inbox):
    """The settings of the call and its code."""
    with open(inbox + "/job") as file:
        job = dict(line.rstrip("\n").split("=", 1) for line in file)
    with open(inbox + "/code", encoding="utf-8") as file:
        return job, file.read()


def report(state, **said):
    """Tell the result: one line each of key and JSON text."""
    import _json

    with open(state + "/result", "w", encoding="ascii") as file:
        file.writelines("%s=%s\n" % (key, _json.encode_basestring_ascii(value)) for key, value in said.items())
        file.write('complete="yes"\n')


def call(namespace, *, inbox, restore, save):
    """Do one job from beginning to end."""
    state = namespace.state
    job, code = read_job(inbox)
    namespace.lost, namespace.note = {}, ""
    if restore:
        namespace.restore()
    with open(state + "/restored", "w"):
        pass
    error = execute(code, module=namespace.module, number=int(job["number"]))
    after = sys.modules.get("figures")
    if after is not None:
        try:
            after.save()
        except BaseException as problem:
            error = error or "the figures could not be saved: " + describe(problem)
    flush()
    if save:
        namespace.save(int(job["state_bytes"]))
    try:
        lost = "; ".join("%s (%s)" % pair for pair in namespace.lost.items())
        report(state, error=error, note=namespace.note[:MAX_TEXT], lost=lost[:MAX_TEXT])
    except MemoryError:
        namespace.module.__dict__.clear()
        note = "All memory was used: the variables of this call are gone; work on smaller parts."
        report(state, error=error or "MemoryError", note=note, lost="")
