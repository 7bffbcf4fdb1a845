import gc

gc.set_threshold(20_000, 20, 100)  # to look through torch and fairseq for garbage took a tenth of all time
