"""A Modbus TCP server by pymodbus, for the end-to-end tests: a peer that Tributary did not write.

Unit 1, holding registers: 0 and 1 are a big-endian 32-bit count of the requests that read them, so every poll has a
value of its own; 2 to 99 are what tests/src/modbus_device.rs calls register(1, 3, address), so every value can be
checked. Prints "port N" once it listens and "served N" for each request.
"""

import asyncio
import sys

from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

served = 0


def register(unit, function, address):
    return (address * 31 + unit * 257 + function * 4099 + 7) % 65536


async def count(function, start, address, count, registers, values):
    global served
    if values is None and address <= start < address + count:
        served += 1
        registers[0], registers[1] = served >> 16, served & 0xFFFF
        print("served", served, flush=True)


async def main():
    values = [0, 0] + [register(1, 3, address) for address in range(2, 100)]
    holding = [SimData(0, values=values, datatype=DataType.REGISTERS)]
    bits = [SimData(0, values=[False], datatype=DataType.BITS)]
    other = [SimData(0, values=[0], datatype=DataType.REGISTERS)]
    device = SimDevice(1, simdata=(bits, bits, holding, other), action=count)
    server = ModbusTcpServer(device, address=("127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 0))
    await server.serve_forever(background=True)
    print("port", server.transport.sockets[0].getsockname()[1], flush=True)
    await server.serving


asyncio.run(main())
