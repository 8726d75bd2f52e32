"""What a cluster needs beside the launch files in `cluster/`: a provider, a watcher of spot notices, a check before work."""
