"""Public test kit of the stack: contracts that every driver and every crypto provider must keep. Import the file you need."""
