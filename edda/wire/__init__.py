"""How a CloudEvent looks on the wire: rendering, shared by everything that sends."""
