"""llama.cpp's server as a process of its own: llamacpp.py PORT MODEL OPTIONS.

OPTIONS is a JSON object of what xllamacpp's CommonParams can be told. The process lasts until it is killed, because the
server's end waits for answers that nobody reads.
"""

import json
import signal
import sys

import xllamacpp

_SMALL = {"n_ctx": 4096, "n_parallel": 1, "use_jinja": True, "warmup": False, "verbosity": -1, "ui": False}
_FORMATS = xllamacpp.common_reasoning_format
_REASONING = {
    "none": _FORMATS.COMMON_REASONING_FORMAT_NONE,
    "auto": _FORMATS.COMMON_REASONING_FORMAT_AUTO,
    "deepseek": _FORMATS.COMMON_REASONING_FORMAT_DEEPSEEK,
    "deepseek-legacy": _FORMATS.COMMON_REASONING_FORMAT_DEEPSEEK_LEGACY,
}


def main(port, model, options):
    parameters = xllamacpp.CommonParams()
    parameters.model.path = model
    parameters.hostnames, parameters.port = ["127.0.0.1"], int(port)
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    for name, value in (_SMALL | json.loads(options)).items():
        setattr(parameters, name, _REASONING[value] if name == "reasoning_format" else value)
    server = xllamacpp.Server(parameters)
    print(server.listening_address, flush=True)
    signal.pause()


if __name__ == "__main__":
    main(*sys.argv[1:])
