"""A Modbus RTU slave by pymodbus on a serial line: unit 3, holding registers with a formula. modbus_slave.py DEVICE BAUD"""

import asyncio
import sys

from pymodbus import FramerType
from pymodbus.server import ModbusSerialServer
from pymodbus.simulator import DataType, SimData, SimDevice


async def main():
    values = [(address * 31 + 7) % 65536 for address in range(100)]
    device = SimDevice(3, simdata=[SimData(0, values=values, datatype=DataType.REGISTERS)])
    server = ModbusSerialServer(
        device, framer=FramerType.RTU, port=sys.argv[1], baudrate=int(sys.argv[2]), parity="N"
    )
    print("ready", flush=True)
    await server.serve_forever()


asyncio.run(main())
