"""A Modbus client by pymodbus: reads what `tributary simulate` serves and prints it as JSON, one table a key.

modbus_client.py tcp PORT | rtu DEVICE BAUD
"""

import json
import sys

from pymodbus.client import ModbusSerialClient, ModbusTcpClient

kind, where = sys.argv[1:3]
if kind == "tcp":
    client = ModbusTcpClient("127.0.0.1", port=int(where), timeout=5)
else:
    client = ModbusSerialClient(where, baudrate=int(sys.argv[3]), parity="N", timeout=5)
assert client.connect(), where

holding = client.read_holding_registers(0, count=5, device_id=3).registers
found = {
    "holding": holding,
    "float": client.convert_from_registers(holding[0:2], client.DATATYPE.FLOAT32),
    "swapped": client.convert_from_registers(holding[2:4], client.DATATYPE.INT32, word_order="little"),
    "input": client.read_input_registers(5, count=1, device_id=3).registers,
    "coil": client.read_coils(2, count=1, device_id=3).bits[0],
    "discrete": client.read_discrete_inputs(9, count=1, device_id=3).bits[0],
    "refused": client.read_holding_registers(60000, count=125, device_id=3).isError(),
}
client.close()
print(json.dumps(found))
