#!/usr/bin/env python3
"""Writes day.csv, a made-up day of a headset with 8 GB: `python3 tests/data/day.py > tests/data/day.csv`.

From midnight, a line every five minutes: on the charger until 7, worn all day, hot in the afternoon, memory
short from 11:00 to 11:20, charged from 18:30.
"""
import math

MINUTES = 5
TOTAL = 7812


def ramp(hour, *points):
    """The value at `hour` on the line through points (hour, value)."""
    for (a, from_), (b, to) in zip(points, points[1:]):
        if a <= hour <= b:
            return from_ + (to - from_) * (hour - a) / (b - a)
    return points[-1][1]


print("t_s,battery_percent,on_ac,mem_available_mib,mem_total_mib,psi_some_avg10,psi_full_avg10,temp_c,power_profile")
for step in range(24 * 60 // MINUTES + 1):
    hour = step * MINUTES / 60
    mains = hour < 7 or hour >= 18.5
    battery = ramp(hour, (0, 88), (1.5, 100), (7, 100), (12, 62), (16, 32), (18.5, 8), (21, 92), (22, 100), (24, 100))
    # The case follows the use and the sun; a little swing, as sensors have.
    celsius = ramp(hour, (0, 34), (7, 33), (9, 46), (13, 54), (14.5, 74), (16, 66), (17, 53), (20, 42), (24, 35))
    celsius += 1.5 * math.sin(step * 1.7)
    available = ramp(hour, (0, 5600), (7, 5600), (8, 4700), (18, 4300), (19, 5200), (24, 5600)) + 150 * math.sin(step * 0.9)
    some, full = 0.4 + 0.4 * math.sin(step) ** 2, 0.0
    if 11 <= hour < 11.3:  # An application takes what there is.
        available, some, full = [420, 150, 260, 900][round((hour - 11) * 12)], [22, 48, 30, 6][round((hour - 11) * 12)], 9
    profile = "power-saver" if 17.5 <= hour < 18.5 else "balanced"
    print(f"{step * MINUTES * 60},{battery:.1f},{str(mains).lower()},{available:.0f},{TOTAL},{some:.1f},{full:.1f},{celsius:.1f},{profile}")
