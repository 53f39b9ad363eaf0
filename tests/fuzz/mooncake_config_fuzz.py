"""mooncake.json and the texts in it: any bytes give a configuration or a ConfigError that names the file, never another exception.

Coverage-guided by atheris, whose command line is libFuzzer's. It starts from valid files, since random bytes hardly ever become JSON.
"""

from __future__ import annotations

import json
import sys
import warnings

import atheris

with atheris.instrument_imports(include=["mooncake.mooncake_config", "mooncake._settings"]):
    from mooncake import mooncake_config

PATH = "mooncake.json"
FIELDS = ("local_hostname", "metadata_server", "master_server_address", "protocol", "device_name", "global_segment_size", "local_buffer_size", "tenant_id")
GOOD = {
    "local_hostname": "192.168.0.137",
    "metadata_server": "etcd://192.168.0.137:2379,192.168.0.138:2379",
    "protocol": "tcp",
    "device_name": "",
    "master_server_address": "192.168.0.137:50001",
    "global_segment_size": "3gb",
}


LETTERS = '0123456789:.,-+_ []{}"\\eEgGmMkKbBinaf\u00b2\u0663\n\t'  # with digits that int() takes and that it does not
STARTS = ("", "host:", "[::1]:", "etcd://", "redis://", "1", "1.5", '{"local_hostname": ')


def check(text: str) -> None:
    try:
        config = mooncake_config._from_json(PATH, text)
    except mooncake_config.ConfigError as error:
        assert str(error).startswith(PATH), error
    else:
        assert config.global_segment_size >= 0 and config.local_buffer_size >= 0


def one_input(data: bytes) -> None:
    provider = atheris.FuzzedDataProvider(data)
    choice = provider.ConsumeIntInRange(0, len(FIELDS))
    start = STARTS[provider.ConsumeIntInRange(0, len(STARTS) - 1)]
    any_text = provider.ConsumeBool()
    rest = start + (provider.ConsumeUnicodeNoSurrogates(len(data)) if any_text else "".join(LETTERS[byte % len(LETTERS)] for byte in provider.ConsumeBytes(len(data))))
    # Either the whole file is what came, or one field of a good file is.
    check(rest if choice == len(FIELDS) else json.dumps({**GOOD, FIELDS[choice]: rest}))


warnings.simplefilter("ignore")
atheris.Setup(sys.argv, one_input)
atheris.Fuzz()
