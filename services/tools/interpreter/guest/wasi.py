# The end of the program that runs in WebAssembly; the text of `driver.py` stands before it.
def _cloudpickle():
    import importlib.util

    if "cloudpickle" not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            "cloudpickle", "/cloudpickle/__init__.py", submodule_search_locations=["/cloudpickle"]
        )
        module = importlib.util.module_from_spec(spec)
        sys.modules["cloudpickle"] = module
        spec.loader.exec_module(module)
    return sys.modules["cloudpickle"]


os.chdir("/mnt/data")
sys.argv, sys.path = ["code"], ["/mnt/data", *sys.path]
_keep = read_job("/mnt/inbox")[0]["keep"] == "1"
call(Namespace("/mnt/state", _cloudpickle), inbox="/mnt/inbox", restore=_keep, save=_keep)
os._exit(0)
