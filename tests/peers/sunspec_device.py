"""A SunSpec device by pymodbus, and what pysunspec2 finds in it: two peers that Tributary did not write.

The device, unit 1, has its mark at 40000 and then one instance of every model that pysunspec2 knows and can lay out, the
inverter and the string combiner twice: repeating groups are there 2 times, inner ones 3 times where their count stands
in a register of its own. Its values come from a seed; a tenth of them is "not implemented". Prints "seed N", "models
DIR", "port N", then "point ADDRESS NAME TYPE VALUE" for each point as pysunspec2's client reads and scales it over TCP
(VALUE is JSON, null for what is not implemented), then "whole".
"""

import asyncio
import json
import os
import random
import re
import sys
import threading

from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice
from sunspec2 import device, mb
from sunspec2.modbus import client

BASE = 40000
TWICE = (103, 404)
seed = int(sys.argv[1])
chance = random.Random(seed)
folder = os.path.join(device.models_dir, "json")


def value(point):
    kind, size = point["type"], point.get("size", 1)
    signed = re.fullmatch(r"int(16|32|64)", kind)
    unsigned = re.fullmatch(r"(?:uint|enum|bitfield|acc)(16|32|64)", kind)
    if kind == "sunssf":
        return chance.randint(-4, 3)
    if kind == "count":
        return chance.randint(0, 9)
    if kind == "ipaddr":
        return chance.randint(1, 2**32 - 2)
    if kind == "ipv6addr":
        return ":".join(f"{chance.randint(1, 2**32 - 2):08X}" for _ in range(4))
    if kind == "eui48":
        return ":".join(f"{chance.randint(1, 254):02X}" for _ in range(6))
    if chance.random() < 0.1:
        return None
    if signed:
        return chance.randint(-(2 ** (int(signed[1]) - 1)) + 1, 2 ** (int(signed[1]) - 1) - 1)
    if unsigned:
        return chance.randint(1, 2 ** int(unsigned[1]) - 2)
    if kind in ("float32", "float64"):
        return chance.randint(-10000, 10000) / 8
    if kind == "string":
        return "".join(chance.choice("abcXYZ019-") for _ in range(chance.randint(1, 2 * size)))
    return None


def counts(group):
    """The names of points that count groups, and how many: 3 of what is within another repeating group."""
    found = {}
    for inner in group.get("groups", []):
        for name, times in counts(inner).items():
            found[name] = 3 if inner.get("count") is not None else times
        if isinstance(inner.get("count"), str):
            found[inner["count"]] = 2
    return found


def data(group, counted):
    made = {point["name"]: counted.get(point["name"]) or value(point) for point in group["points"]}
    for inner in group.get("groups", []):
        count = inner.get("count")
        if count is None:
            made[inner["name"]] = data(inner, counted)
        else:
            times = counted.get(count, count or 2)
            made[inner["name"]] = [data(inner, counted) for _ in range(times)]
    return made


def registers():
    chain = b"SunS"
    ids = sorted(int(name[6:-5]) for name in os.listdir(folder) if re.fullmatch(r"model_\d+\.json", name))
    ids.remove(1)
    for number in [1] + sorted(ids + list(TWICE)):
        group = device.get_model_def(number)["group"]
        model = device.Model(number, data=data(group, counts(group)))
        if model.error_info:
            print("not laid out:", number, model.error_info.strip())
            continue
        body = model.get_mb()
        chain += mb.u16_to_data(number) + mb.u16_to_data(len(body) // 2 - 2) + body[4:]
    chain += b"\xff\xff\x00\x00"
    return [int.from_bytes(chain[at : at + 2], "big") for at in range(0, len(chain), 2)]


def points(group, prefix):
    for name, point in group.points.items():
        if name not in ("ID", "L") or "." in prefix:
            yield f"{prefix}.{name}", point
    for name, inner in group.groups.items():
        for number, one in enumerate(inner if isinstance(inner, list) else [inner], 1):
            yield from points(one, f"{prefix}.{name}{number if isinstance(inner, list) else ''}")


def read(port):
    peer = client.SunSpecModbusClientDeviceTCP(slave_id=1, ipaddr="127.0.0.1", ipport=port, timeout=20)
    peer.scan()
    seen = {}
    for model in peer.model_list:
        if model.error_info:
            sys.exit(f"{model.model_id}: {model.error_info}")
        seen[model.gname] = seen.get(model.gname, 0) + 1
        prefix = model.gname + (str(seen[model.gname]) if seen[model.gname] > 1 else "")
        for name, point in points(model, prefix):
            print("point", model.model_addr + point.offset, name, point.pdef["type"], json.dumps(point.cvalue))
    peer.close()
    print("whole", flush=True)


async def main():
    holding = registers()
    print("seed", seed, flush=True)
    print("models", folder, flush=True)
    bits = [SimData(0, values=[False], datatype=DataType.BITS)]
    other = [SimData(0, values=[0], datatype=DataType.REGISTERS)]
    mapped = [SimData(BASE, values=holding, datatype=DataType.REGISTERS)]
    server = ModbusTcpServer(SimDevice(1, simdata=(bits, bits, mapped, other)), address=("127.0.0.1", 0))
    await server.serve_forever(background=True)
    port = server.transport.sockets[0].getsockname()[1]
    print("port", port, flush=True)
    threading.Thread(target=read, args=(port,), daemon=True).start()
    await server.serving


asyncio.run(main())
